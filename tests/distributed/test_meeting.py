"""Ranks that cannot meet: one line on every rank that can know it, soon; and strangers at the port where ranks meet."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from launching import clean_environment, free_port, start_ranks

from fds_dist.common.faults import UserError
from fds_dist.distributed import store as meeting
from fds_dist.distributed.environment import LaunchEnvironment
from fds_dist.distributed.errors import RankLost

SOON = 30.0
"""Seconds: three times the patience with what may be late, on a machine that is busy with other tests."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is waited for in vain here need not be waited for long. Each test meets anew."""
    monkeypatch.setattr(meeting, "PATIENCE", 1.0)
    monkeypatch.setattr(meeting, "_LISTENING", 0.5)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)


def rank(number: int, port: int, world_size: int = 2, address: str = "127.0.0.1") -> LaunchEnvironment:
    return LaunchEnvironment(number, world_size, number, world_size, address, port, one_host=True)


def refused(environment: LaunchEnvironment) -> str:
    """The one line with which this rank ends."""
    began = time.monotonic()
    with pytest.raises(UserError) as raised:
        meeting._store.__wrapped__(environment)
    assert time.monotonic() - began < SOON
    (fault,) = raised.value.faults
    return str(fault)


def met(environment: LaunchEnvironment) -> bytes:
    """What rank 0 has put into the store."""
    store = meeting._store.__wrapped__(environment)
    if environment.rank == 0:
        store.set("word", "hello")
    word = store.get("word")
    store.add("read", 1)
    while environment.rank == 0 and store.add("read", 0) < environment.world_size:
        time.sleep(0.01)  # the store goes with rank 0
    return word


@contextmanager
def listener(answer: bytes | None) -> Iterator[int]:
    """The port of a stranger that answers every connection so; None: never."""
    connections = []

    def serve(server: socket.socket) -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            connections.append(connection)
            if answer is not None:
                connection.sendall(answer)
                connection.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=(server,), daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    thread.join(SOON)


def test_ranks_meet_whoever_comes_first() -> None:
    port = free_port()
    with ThreadPoolExecutor(3) as ranks:
        late = [ranks.submit(met, rank(number, port, 3)) for number in (2, 1)]
        time.sleep(0.3)
        assert met(rank(0, port, 3)) == b"hello"
        assert [future.result(SOON) for future in late] == [b"hello", b"hello"]
    socket.create_server(("127.0.0.1", port)).close()  # the port is free again


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("address", ["nowhere.invalid", "no..name", "x" * 70])
def test_a_host_that_nobody_knows(number: int, address: str) -> None:
    line = refused(rank(number, free_port(), address=address))
    assert line.startswith(f"environment variable MASTER_ADDR: {address!r} does not resolve: ")
    assert line.endswith("; expected the host name of rank 0")


@pytest.mark.parametrize("number", [0, 1])
def test_the_host_of_rank_0_is_another_one(number: int) -> None:
    line = refused(rank(number, free_port(), address="203.0.113.77"))  # for documentation: nobody has it
    assert line.startswith("environment variable MASTER_ADDR: '203.0.113.77' is not this host, on which rank 0 runs; ")
    assert socket.gethostname() in line


@pytest.mark.parametrize("answer", [None, b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\xff\x00" * 500])
def test_a_port_that_another_program_has(answer: bytes | None) -> None:
    with listener(answer) as port:
        assert refused(rank(0, port)) == (
            f"environment variable MASTER_PORT: {port}: {os.strerror(errno.EADDRINUSE)}; "
            "expected a port that is free on the host of rank 0"
        )
        assert refused(rank(1, port)) == (
            f"environment variable MASTER_PORT: another program than rank 0 listens at 127.0.0.1:{port}; "
            "expected a port that is free on the host of rank 0"
        )


def test_strangers_at_the_port_do_not_keep_ranks_from_meeting() -> None:
    port = free_port()
    with ThreadPoolExecutor(2) as ranks:
        first = ranks.submit(met, rank(0, port))
        for text in (b"", b"GET / HTTP/1.1\r\n\r\n", b"fds-dist one two\n", b"\xff" * 1000):
            deadline = time.monotonic() + SOON
            while True:
                try:
                    connection = socket.create_connection(("127.0.0.1", port), 5)
                    break
                except ConnectionError:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            with connection:
                connection.sendall(text)
        with socket.create_connection(("127.0.0.1", port), 5):  # says nothing, and stays
            assert met(rank(1, port)) == b"hello"
        assert first.result(SOON) == b"hello"


def test_a_rank_that_comes_twice() -> None:
    port = free_port()
    with ThreadPoolExecutor(2) as ranks:
        others = [ranks.submit(met, rank(number, port, 3)) for number in (0, 1)]
        time.sleep(1.0)
        line = refused(rank(1, port, 3))
        assert line.startswith(f"environment variable RANK: another process has come to 127.0.0.1:{port} as rank 1")
        assert met(rank(2, port, 3)) == b"hello"
        assert [future.result(SOON) for future in others] == [b"hello", b"hello"]


def test_ranks_that_count_the_ranks_differently() -> None:
    port = free_port()
    with ThreadPoolExecutor(1) as ranks:
        first = ranks.submit(refused, rank(0, port, 2))
        second = refused(rank(1, port, 3))
        expected = "environment variable WORLD_SIZE: 3 on rank 1, 2 on rank 0; expected the same number on all ranks"
        assert (first.result(SOON), second) == (expected, expected)


def test_ranks_that_do_not_come_are_named() -> None:
    port = free_port()
    with pytest.raises(RankLost, match=rf"missing at MASTER_ADDR=127.0.0.1 MASTER_PORT={port}: ranks 1, 2"):
        meeting._store.__wrapped__(replace(rank(0, port, 3), timeout=1.0))
    line = rf"rank 0 does not answer at MASTER_ADDR=127.0.0.1 MASTER_PORT={port}, for 1 s \(nothing listens there: "
    with pytest.raises(RankLost, match=line):
        meeting._store.__wrapped__(replace(rank(1, port, 3), timeout=1.0))


def ended_apart(first: LaunchEnvironment, second: LaunchEnvironment) -> list[str]:
    """The lines of two ranks that do not meet."""

    def line(environment: LaunchEnvironment) -> str:
        began = time.monotonic()
        with pytest.raises((RankLost, UserError)) as raised:
            meeting._store.__wrapped__(environment)
        assert time.monotonic() - began < environment.timeout + SOON
        return str(raised.value)

    with ThreadPoolExecutor(2) as ranks:
        return [future.result(2 * SOON) for future in [ranks.submit(line, each) for each in (first, second)]]


def test_a_wrong_port_on_one_rank_is_told_by_both() -> None:
    port, other = free_port(), free_port()
    first, second = ended_apart(*(replace(rank(n, p), timeout=2.0) for n, p in enumerate((port, other))))
    place = f"MASTER_ADDR=127.0.0.1 MASTER_PORT={port}"
    why = "not started, or sent elsewhere by another MASTER_ADDR or MASTER_PORT"
    assert first == f"missing at {place}: rank 1, after 2 s ({why})"
    assert second == (
        f"rank 0 does not answer at MASTER_ADDR=127.0.0.1 MASTER_PORT={other}, for 2 s "
        "(nothing listens there: rank 0 has not started, or has another MASTER_PORT, or is on another host)"
    )


@pytest.mark.parametrize("address", ["nowhere.invalid", "203.0.113.77"])
def test_a_wrong_address_on_one_rank_of_two_hosts(address: str) -> None:
    """What the network answers to an address that nobody has differs; each answer has its line."""
    port = free_port()
    right, wrong = (replace(rank(n, port), one_host=False, timeout=2.0) for n in range(2))
    first, second = ended_apart(right, replace(wrong, master_address=address))
    assert first.startswith(f"missing at MASTER_ADDR=127.0.0.1 MASTER_PORT={port}: rank 1, after 2 s")
    assert second.startswith(
        (
            f"environment variable MASTER_ADDR: {address!r} does not resolve: ",
            f"environment variable MASTER_ADDR: {address!r} cannot be reached: ",
            f"rank 0 does not answer at MASTER_ADDR={address} MASTER_PORT={port}, for 2 s (no",
        )
    )


def test_an_address_from_which_no_packet_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def drop(place: object, timeout: float) -> None:
        time.sleep(min(timeout, 0.2))
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", drop)
    line = r"rank 0 does not answer at .*, for 1 s \(no packet comes back: it is another host's address, or a firewall"
    with pytest.raises(RankLost, match=line):
        meeting._store.__wrapped__(replace(rank(1, free_port()), timeout=1.0))


def test_the_store_of_a_torchrun_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    port = free_port()
    with pytest.raises(
        RankLost, match=rf"torchrun's store does not answer at MASTER_ADDR=127.0.0.1 MASTER_PORT={port}"
    ):
        meeting._store.__wrapped__(replace(rank(1, port), timeout=2.0))


COMPLETE = {"task": {"name": "own_tasks:blobs"}, "inner": {"epochs": 1}, "hyperparameters": {"lr": {"buckets": 2}}}
"""A config without faults of its own, which would be told first."""


def test_the_command_tells_one_line_on_every_rank(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(COMPLETE))
    started = time.monotonic()
    # Each rank believes that it is the first of its host, so that each prints.
    command = "import os, sys; os.environ['LOCAL_RANK'] = '0'; from fds_dist.cli import main; sys.exit(main())"
    with listener(b"") as port:
        environment = clean_environment(TORCHELASTIC_USE_AGENT_STORE="False")
        ended = start_ranks(
            ["-c", f"import os; os.environ['MASTER_PORT'] = '{port}'; {command}", "check", "config.yaml"],
            2,
            [tmp_path],
            environment,
        )
    assert time.monotonic() - started < 4 * SOON  # with the time that PyTorch takes to start
    assert [(end.status, end.out, len(end.err.splitlines())) for end in ended] == [(2, "", 1)] * 2
    assert all(end.err.startswith("fds-dist: environment variable MASTER_PORT: ") for end in ended)
