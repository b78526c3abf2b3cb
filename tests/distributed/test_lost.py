"""Which rank is lost, told from signs of life: on this host by its process, on others by its silence."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from fds_dist.distributed.environment import LaunchEnvironment
from fds_dist.distributed.errors import RankLost, reached
from fds_dist.distributed.heartbeat import Heartbeat, Sign, Verdict, here, make_current
from fds_dist.distributed.lost import why_lost
from fds_dist.distributed.processes import identity, name_space
from fds_dist.distributed.store import line_to_host

TIMEOUT = 1.0
"""Seconds. A fifth of it lies between two signs."""
AWAY = Sign(7, 0.0, "waiting", "inner step 40 of outer step 0", 0.0, "", "abc", 123, "abc 123 456", "pid:[1]")
"""The sign of a rank on another host."""


def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process of this host."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()


process = pytest.fixture(child, name="process")


def local(process: subprocess.Popen[bytes]) -> Sign:
    """The sign of a rank that is `process`."""
    names = {"host": socket.gethostname(), "pid": process.pid, "process": identity(process.pid), "space": name_space()}
    return AWAY._replace(**names)


class Company:
    """The signs of four ranks in a store; this process is rank 3."""

    def __init__(self) -> None:
        self.host = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.heart = self.of_rank(3)
        make_current(self.heart)
        self.heart.start()

    def of_rank(self, rank: int) -> Heartbeat:
        store = TCPStore("127.0.0.1", self.host.port, is_master=False)
        place = LaunchEnvironment(rank, 4, rank, 4, timeout=TIMEOUT)
        return Heartbeat(store, line_to_host(store), place, store_of_rank_0=True)

    def write(self, rank: int, sign: Sign) -> None:
        self.host.set(f"sign/{rank}", json.dumps(sign))

    def lost(self, **signs: Sign) -> Verdict:
        """The verdict where these ranks write one sign alone, and the others many."""
        over = threading.Event()

        def live() -> None:
            count = 0
            while not over.wait(TIMEOUT / 20):
                count += 1
                for rank in {0, 1, 2} - {int(name[-1]) for name in signs}:
                    self.write(rank, AWAY._replace(number=count))

        for name, sign in signs.items():
            self.write(int(name[-1]), sign)
        thread = threading.Thread(target=live)
        thread.start()
        time.sleep(TIMEOUT / 4)
        try:
            return why_lost("Timed out", self.heart)
        finally:
            over.set()
            thread.join()


@pytest.fixture
def company() -> Iterator[Company]:
    company = Company()
    yield company
    company.heart.stop()
    make_current(None)


def test_a_rank_of_another_host_is_named_by_its_silence(company: Company) -> None:
    text, lost, _ = company.lost(rank1=AWAY._replace(clock=time.time() - 12))
    assert re.sub(r"for \d+ s", "for so many s", text) == (
        "lost another rank: rank 1 (host abc, pid 123) has been silent for so many s, its host does not answer; "
        "its last step was inner step 40 of outer step 0 (Timed out)"
    )
    assert int(re.findall(r"for (\d+) s", text)[0]) >= 12
    assert lost == [1]


def test_a_stopped_process_of_this_host_is_named_at_once(company: Company, process: Any) -> None:
    os.kill(process.pid, signal.SIGSTOP)
    text, lost, _ = company.lost(rank2=local(process)._replace(place=""))
    assert "its process is stopped; it had told of no step yet (Timed out)" in text
    assert f"rank 2 (host {local(process).host}, pid {process.pid}) has been silent" in text
    assert lost == [2]


def test_a_process_of_this_host_that_is_gone_is_named_at_once(company: Company, process: Any) -> None:
    sign = local(process)
    process.kill()
    text, lost, _ = company.lost(rank1=sign)
    assert "has ended; see its output; its last step was inner step 40 of outer step 0 (Timed out)" in text
    assert lost == [1]


def test_another_process_with_the_same_number_is_not_the_rank(company: Company, process: Any) -> None:
    text, lost, _ = company.lost(rank1=local(process)._replace(process="of long ago"))
    assert "has ended" in text
    assert lost == [1]


def test_a_rank_that_is_busy_while_others_wait_is_named_with_its_line(company: Company) -> None:
    over = threading.Event()

    def live() -> None:
        count = 0
        while not over.wait(TIMEOUT / 20):
            count += 1
            busy = AWAY._replace(number=count, state="busy", line=" at task.py:7", since=100.0, clock=112.0)
            for rank in range(3):
                company.write(rank, busy if rank == 0 else AWAY._replace(number=count))

    thread = threading.Thread(target=live)
    thread.start()
    time.sleep(TIMEOUT / 4)
    verdict = why_lost("Timed out", company.heart)
    over.set()
    thread.join()
    assert "rank 0 (host abc, pid 123) has been busy at task.py:7 for 12 s, while others waited for it" in verdict.text
    assert verdict.lost == [0]


def test_all_ranks_tell_the_first_verdict_and_the_first_rank_left_speaks(company: Company) -> None:
    """A rank that computes alone learns it at its next step."""
    other = company.of_rank(0)
    other.start()
    first = other.agreed(Verdict("lost another rank: rank 0", [0, 1, 2]))
    assert company.heart.agreed(Verdict("something else", [1])) == first
    deadline = time.monotonic() + 30
    with pytest.raises(RankLost, match=r"^lost another rank: rank 0$") as raised:
        while time.monotonic() < deadline:
            reached("inner step {} of outer step 2", 5)
            time.sleep(0.01)
    assert raised.value.speaks
    assert not RankLost(Verdict("", [0, 2])).speaks
    assert here.words == "inner step 5 of outer step 2"
    other.stop()
    assert company.heart.signs() is not None
    assert company.heart.signs()[0].state == "ended"  # type: ignore[index]


def test_a_store_that_is_gone_or_silent_ended_or_stopped_with_rank_0(company: Company) -> None:
    """The store is that of another process, which is stopped and then killed."""
    program = (
        "import time; from torch.distributed import TCPStore\n"
        "store = TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)\n"
        "print(store.port, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as host:
        assert host.stdout is not None
        store = TCPStore("127.0.0.1", int(host.stdout.readline()), is_master=False)
        place = LaunchEnvironment(3, 4, 3, 4, timeout=TIMEOUT)
        hearts = [Heartbeat(store, line_to_host(store), place, store_of_rank_0=True) for _ in range(2)]
        sign = local(host)  # type: ignore[arg-type]
        for heart in hearts:
            heart.start()
            assert heart.ask(lambda store: 1) == 1
            heart.first = sign
        host.send_signal(signal.SIGSTOP)
        assert "its process is stopped" in why_lost("Timed out", hearts[0]).text
        host.kill()
        host.wait()
        here.begin()
        text, lost, _ = why_lost("Connection closed by peer", hearts[1])
        assert f"rank 0 (host {sign.host}, pid {host.pid}) has ended; see its output" in text
        assert lost == [0]
