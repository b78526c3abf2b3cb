"""Which way leads to the other hosts."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from fds_dist.distributed.addresses import INTERFACE, interface_of, name_interface, way_to
from fds_dist.distributed.environment import LaunchEnvironment

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the addresses of its interfaces")


class Board(dict[str, bytes]):
    """A store that has all it is asked for."""

    def set(self, key: str, value: str) -> None:
        self[key] = value.encode()

    def get(self, key: str) -> bytes:  # type: ignore[override]
        return self[key]


def test_the_way_to_oneself() -> None:
    assert way_to("127.0.0.1") == ("127.0.0.1", "127.0.0.1")
    assert way_to("localhost")[0] == "127.0.0.1"  # IPv4 where there are both


def test_a_host_that_is_nowhere() -> None:
    with pytest.raises(OSError):
        way_to("nowhere.invalid")


@on_linux
def test_the_interface_with_an_address() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.77") is None  # an address for documentation: nobody has it


@on_linux
@pytest.mark.parametrize("rank", [0, 1])
def test_gloo_is_told_of_the_interface_unless_the_user_has(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(INTERFACE, "kept")  # so that it is as before after the test
    monkeypatch.delenv(INTERFACE)
    environment = LaunchEnvironment(rank, 2, rank, 2, "127.0.0.1", 1)
    board = Board({} if rank else {"last": b"127.0.0.1"})
    name_interface(environment, board)
    assert os.environ[INTERFACE] == "lo"
    assert board == {"last": b"127.0.0.1"}
    os.environ[INTERFACE] = "chosen"
    name_interface(environment, board)
    assert os.environ[INTERFACE] == "chosen"


def test_the_program_says_nothing_of_this_host_and_one_line_of_none() -> None:
    command = [sys.executable, "-m", "fds_dist.distributed.addresses"]
    here = subprocess.run([*command, "127.0.0.1"], capture_output=True, text=True)
    assert (here.returncode, here.stdout, here.stderr) == (0, "\n", "")
    nowhere = subprocess.run([*command, "nowhere.invalid"], capture_output=True, text=True)
    assert (nowhere.returncode, nowhere.stdout) == (1, "")
    (line,) = nowhere.stderr.splitlines()
    assert line.startswith("fds-dist: nowhere.invalid: ")


def test_the_way_out_begins_at_an_address_of_this_host() -> None:
    try:
        here, there = way_to("203.0.113.77")
    except OSError:
        pytest.skip("there is no way out of this host")
    assert there == "203.0.113.77"
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as own:
        own.bind((here, 0))  # only one's own addresses can be bound
