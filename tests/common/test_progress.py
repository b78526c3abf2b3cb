"""The progress of long work: a bar in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from fds_dist.common.console import PLAIN_INTERVAL, counting


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_pipe_gets_a_line_now_and_then_with_the_time_that_is_left() -> None:
    file, clock = io.StringIO(), Clock()
    with counting("noise", "runs", Console(file=file), clock) as show:
        for done in range(1, 9):
            clock.now += PLAIN_INTERVAL / 2
            show(done, 20)
    assert file.getvalue().splitlines() == [  # 5 s a run
        "noise: 2 of 20 runs done, about 1m30s left",
        "noise: 4 of 20 runs done, about 1m20s left",
        "noise: 6 of 20 runs done, about 1m10s left",
        "noise: 8 of 20 runs done, about 1m00s left",
    ]


def test_short_work_prints_nothing_in_a_pipe() -> None:
    file = io.StringIO()
    with counting("noise", "runs", Console(file=file)) as show:
        show(4, 4)
    assert file.getvalue() == ""


def test_a_terminal_gets_a_bar_that_goes_when_the_work_fails() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, force_interactive=True, width=80, color_system=None)
    with pytest.raises(RuntimeError, match="lost"), counting("noise", "runs", console) as show:
        show(3, 4)
        raise RuntimeError("lost")
    assert "3/4" in file.getvalue()
    assert file.getvalue().endswith("\x1b[2K")  # the bar's line is erased
