"""A signal that a launcher sends because it, or a rank, is lost is no interruption: the ranks end with a line on it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from launch_scripts import wait_until
from launching import clean_environment

from fds_dist.common import interruptions
from fds_dist.common.interruptions import was_signalled
from fds_dist.distributed.endings import end_together, graceful
from fds_dist.distributed.errors import RankLost
from fds_dist.distributed.heartbeat import Verdict, here
from fds_dist.distributed.mesh import Ranks


@pytest.fixture(autouse=True)
def as_in_the_command_line() -> Iterator[None]:
    usual = {number: signal.getsignal(number) for number in interruptions.SIGNALS}
    interruptions.end_on_signals()
    yield
    interruptions.forget_signals()
    here.begin()
    for number, handler in usual.items():
        signal.signal(number, handler)


def asked_and_then(verdict: Verdict) -> None:
    """A run that a signal asks to end, and that then meets with the loss of a rank."""
    with graceful(60, lambda: None):
        signal.raise_signal(signal.SIGTERM)
        raise RankLost(verdict)


def test_a_lost_rank_is_the_cause_of_the_signal_that_came_before_its_loss_was_seen() -> None:
    with pytest.raises(RankLost, match="has ended"):
        asked_and_then(Verdict("lost another rank: rank 1 has ended", [1]))
    assert not was_signalled()  # so the command line tells the loss


def test_a_rank_that_was_interrupted_before_the_others_leaves_them_interrupted() -> None:
    with pytest.raises(KeyboardInterrupt) as raised:
        asked_and_then(Verdict("rank 1 ended: it was interrupted", [], interrupted=True))
    assert str(raised.value.__cause__) == "rank 1 ended: it was interrupted"
    assert was_signalled()


class FourRanks:
    """What `end_together` uses of `Ranks`, seen from rank 0 where the launchers of some ranks have ended."""

    rank = 0

    def __init__(self, *lost: int) -> None:
        self.lost = lost

    def gather_objects(self, value: tuple[int, str]) -> list[tuple[int, str]]:
        assert value == (0, "")
        return [(rank, "the launcher on b has ended" if rank in self.lost else "") for rank in range(4)]


@pytest.mark.parametrize(
    ("lost", "line"),
    [
        ((2, 3), "ranks 2, 3 ended: the launcher on b has ended; saved at inner step 1 of 8"),
        ((), None),
    ],
)
def test_all_ranks_end_with_the_lost_launcher_where_there_is_one(lost: tuple[int, ...], line: str | None) -> None:
    with pytest.raises(KeyboardInterrupt if line is None else RankLost) as raised:
        end_together(cast(Ranks, FourRanks(*lost)), "saved at inner step 1 of 8")
    assert str(raised.value) == (line or "")
    assert here.has_lost == bool(lost)


CHILD = """
import signal, sys
from pathlib import Path
from fds_dist.distributed.parent import end_with_launcher, launcher_loss

def tell(*_):
    Path("new").write_text(launcher_loss())
    Path("new").rename("told")
    sys.exit()

signal.signal(signal.SIGTERM, tell)
end_with_launcher()
Path("ready").write_text(launcher_loss())
while True:
    signal.pause()
"""
PARENT = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', sys.argv[1]]); time.sleep(600)"


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells a process that its parent has ended")
@pytest.mark.parametrize(("end", "loss"), [("launcher", f"the launcher on {socket.gethostname()} has ended"), ("", "")])
def test_a_rank_tells_the_end_of_its_launcher_from_another_signal(end: str, loss: str, tmp_path: Path) -> None:
    variables = clean_environment(TORCHELASTIC_RUN_ID="run")
    launcher = subprocess.Popen([sys.executable, "-c", PARENT, CHILD], cwd=tmp_path, env=variables)
    try:
        wait_until((tmp_path / "ready").exists, "the rank")
        assert (tmp_path / "ready").read_text() == ""
        if end:
            launcher.kill()
        else:
            (rank,) = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
            os.kill(int(rank), signal.SIGTERM)
        wait_until((tmp_path / "told").exists, "what the rank says")
        assert (tmp_path / "told").read_text() == loss
    finally:
        launcher.kill()
        launcher.wait()
