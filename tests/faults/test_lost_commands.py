"""A rank of any command is killed: the other one ends with one line, wherever it waits for it."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest
from lost_ranks import left_waiting, write_config

TIMEOUT = 60.0
"""Nobody waits for it: ranks that are gone are noticed."""
COMMANDS = {
    "optimize": ["optimize"],
    "check": ["check"],
    "verify": ["verify"],
    "bench": ["bench"],
    "noise": ["noise", "--runs", "4"],
    "compare": ["compare"],
}
CASES = [
    (command, victim, moment)
    for command in COMMANDS
    for victim in (0, 1)
    for moment in ("build", "batch-1", "batch-2", "batch-6")
    if command != "check" or moment == "build"  # which ends before it trains
]


@pytest.mark.slow
@pytest.mark.parametrize(("command", "victim", "moment"), CASES)
def test_the_other_rank_says_one_line(command: str, victim: int, moment: str, tmp_path: Path) -> None:
    write_config(tmp_path, TIMEOUT, compare={"methods": ["cosine"], "judge_seeds": 1})
    words = [*COMMANDS[command], "config.yaml"]
    ((left, end),) = left_waiting(tmp_path, 2, words, victim, "SIGKILL", moment).items()
    assert (left, end.status) == (1 - victim, 1)
    assert len(end.lines) == 1, end.err
    (line,) = end.lines
    named = rf"rank {victim} \(host {re.escape(socket.gethostname())}, pid \d+\) has ended; see its output"
    told = "(its last step was |it had told of no step yet)"
    assert re.match(rf"fds-dist: lost another rank: {named}; {told}", line), line
