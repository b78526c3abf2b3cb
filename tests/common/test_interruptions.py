"""What has to be whole is whole, whatever signal comes."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from fds_dist.common.interruptions import defer_signals


@pytest.fixture(autouse=True)
def signals_interrupt() -> Iterator[None]:
    """As in the command line, also where the tests run in the background of a shell, which ignores SIGINT there."""
    usual = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in usual.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_until_all_is_done(number: signal.Signals) -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), defer_signals(), defer_signals():
        signal.raise_signal(number)
        signal.raise_signal(signal.SIGTERM)
        done.append("all")
    assert done == ["all"]
    with pytest.raises(KeyboardInterrupt):  # at once again
        signal.raise_signal(number)


def test_without_a_signal_nothing_changes() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="planted"), defer_signals():
        raise ValueError("planted")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with defer_signals():
        signal.raise_signal(signal.SIGTERM)


def test_other_threads_may_use_it() -> None:
    done = []

    def work() -> None:
        with defer_signals():
            done.append("all")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == ["all"]
