"""A rank that ends with an error tells why in the shared store, and the ranks that lose it repeat it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from fds_dist.common.faults import Fault, UserError
from fds_dist.distributed import last_words
from fds_dist.distributed.errors import RankLost, ending, rank_errors
from fds_dist.distributed.last_words import Board


@pytest.fixture
def host() -> Iterator[TCPStore]:
    yield TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    last_words.leave(lingers=False)


def boards(host: TCPStore, size: int = 3) -> list[Board]:
    return [
        Board(PrefixStore("words", TCPStore("127.0.0.1", host.port, is_master=False)), rank, size)
        for rank in range(size)
    ]


def say(board: Board, text: str) -> None:
    last_words.use(board)
    last_words.say(board.rank, text)


def test_the_others_hear_each_rank_but_themselves_in_one_line(host: TCPStore) -> None:
    first, second, third = boards(host)
    say(second, "out of memory:\n  3 GiB")
    say(third, "")  # it has lost a rank itself
    last_words.use(first)
    assert last_words.heard() == {1: "out of memory: 3 GiB"}
    last_words.use(second)
    assert last_words.heard() == {}


def test_a_closed_connection_is_told_by_the_last_words(host: TCPStore) -> None:
    first, second, third = boards(host)
    say(second, "ValueError: planted")
    say(third, "ValueError: planted")
    last_words.use(first)
    with pytest.raises(RankLost, match=r"^ranks 1, 2 ended: ValueError: planted$"), rank_errors():
        raise RuntimeError("[/pytorch/x.cpp:1] Connection closed by peer")
    last_words.leave(lingers=False)
    with pytest.raises(RankLost, match=r"lost another rank .* \(Connection closed by peer\)"), rank_errors():
        raise RuntimeError("[/pytorch/x.cpp:1] Connection closed by peer")


def test_a_rank_waits_until_the_others_have_heard_it_or_end_too(
    host: TCPStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = boards(host)
    say(third, "RunsDiverged: all alike")
    last_words.use(second)
    last_words.heard()
    say(first, "RunsDiverged: all alike")
    began = time.monotonic()
    last_words.leave(lingers=True)
    assert time.monotonic() - began < last_words.LINGER.total_seconds() / 2
    monkeypatch.setattr(last_words, "LINGER", 0 * last_words.LINGER)
    last_words.use(Board(PrefixStore("silent", host), 0, 3))
    last_words.leave(lingers=True)  # nobody reads: it does not wait for ever
    assert last_words.heard() == {}


def test_a_store_that_is_gone_or_silent_is_no_further_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        def check(self, *_: object) -> bool:
            raise RuntimeError("Broken pipe")

        set = get = check

    class Silent(Gone):
        def check(self, *_: object) -> bool:
            time.sleep(1)
            return False

    monkeypatch.setattr(last_words, "PATIENCE", 0.05)
    for store in (Gone(), Silent()):
        last_words.use(Board(store, 1, 2))  # type: ignore[arg-type]
        last_words.say(1, "planted")
        assert last_words.heard() == {}
        last_words.leave(lingers=True)


def test_last_words_name_the_cause_and_its_line() -> None:
    assert (
        ending(UserError([Fault("a", "is bad", "b"), Fault("c", "is worse")])) == "a: is bad; expected b; c: is worse"
    )
    assert ending(RankLost("gone")) == ""
    assert ending(KeyboardInterrupt()) == "it was interrupted"
    try:
        raise ValueError("planted\nmore")
    except ValueError as error:
        assert ending(error).startswith("ValueError: planted at ")
        assert "test_last_words.py:" in ending(error)
