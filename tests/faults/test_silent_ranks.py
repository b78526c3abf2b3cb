"""A rank that is stopped, hangs, is killed or exits: the others end in time, and one line names it."""

from __future__ import annotations

import re
import socket
import subprocess
import time
from pathlib import Path

import pytest
from launch_scripts import LAUNCH, script_environment
from launching import PATIENCE
from lost_ranks import LOST, MOMENTS, Left, left_waiting, write_config

SEARCH = ["optimize", "config.yaml"]
TIMEOUT = 6.0
IN_TIME = 35.0
"""Seconds beyond the timeout."""

SAYS = {
    "SIGSTOP": r"has been silent for \d+ s, its process is stopped",
    "HANG": r"has been busy at \S*lost_ranks\.py:\d+ for \d+ s, while others waited for it",
    "SIGKILL": r"has ended; see its output",
    "EXIT": r"has ended; see its output",
}
PLACE = r"; (its last step was inner step \d+ of outer step \d|it had told of no step yet)"


def judge(left: dict[int, Left], victim: int, how: str) -> None:
    """All have ended in time and alike; the first of them alone says one line."""
    for rank, end in left.items():
        assert end.status == 1, (rank, end)
        assert end.seconds < TIMEOUT + IN_TIME, (rank, end)
    first, *others = sorted(left)
    assert [left[rank].err for rank in others] == [""] * len(others)
    (line,) = left[first].lines
    named = rf"rank {victim} \(host {re.escape(socket.gethostname())}, pid \d+\)"
    assert re.match(rf"fds-dist: lost another rank: {named} {SAYS[how]}{PLACE} \(", line), line


@pytest.mark.parametrize(("victim", "how", "moment"), [(1, "SIGSTOP", "1.1"), (0, "HANG", "1.1")])
def test_a_rank_that_is_silent_is_named(victim: int, how: str, moment: str, tmp_path: Path) -> None:
    write_config(tmp_path, TIMEOUT)
    judge(left_waiting(tmp_path, 2, SEARCH, victim, how, moment), victim, how)


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("how", ["SIGSTOP", "HANG", "SIGKILL"])
def test_whenever_it_is_lost(how: str, victim: int, moment: str, tmp_path: Path) -> None:
    write_config(tmp_path, TIMEOUT)
    judge(left_waiting(tmp_path, 2, SEARCH, victim, how, moment), victim, how)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{}, {"data": 2}, {"replica": 2}])
@pytest.mark.parametrize("how", list(SAYS))
def test_one_of_four(how: str, mesh: dict[str, int], tmp_path: Path) -> None:
    write_config(tmp_path, TIMEOUT, mesh=mesh)
    judge(left_waiting(tmp_path, 4, SEARCH, 2, how, "1.1"), 2, how)


@pytest.mark.slow
def test_a_launcher_does_not_wait_for_a_stopped_rank(tmp_path: Path) -> None:
    """torchrun sends SIGTERM, which a stopped process does not get, and SIGKILL 30 seconds later."""
    write_config(tmp_path, TIMEOUT)
    began = time.monotonic()
    done = subprocess.run(
        [LAUNCH / "single_node.sh", "optimize", "config.yaml"],
        cwd=tmp_path,
        env=script_environment(NPROC="2", **{LOST: "1 SIGSTOP 1.1"}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 1
    ours = [line for line in done.stderr.splitlines() if line.startswith("fds-dist:")]
    assert len(ours) == 1
    assert re.search(SAYS["SIGSTOP"], ours[0])
    assert time.monotonic() - began < TIMEOUT + IN_TIME + 60  # and the time that PyTorch takes to start
    pid = int((tmp_path / "lost").read_text())
    assert not Path(f"/proc/{pid}").exists()
