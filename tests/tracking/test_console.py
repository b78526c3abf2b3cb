"""The console: legible in a terminal, plain lines in a file."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from events import inner_block, outer_record, run_end, run_start
from rich.console import Console

from fds_dist.tracking.console import PLAIN_INTERVAL, ConsoleTracker
from fds_dist.tracking.verdict import JudgedCandidate, Verdict


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def printed(terminal: bool, width: int = 80) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=terminal, force_interactive=terminal, width=width, color_system=None), file


def screen(text: str) -> list[str]:
    """What stays on a terminal's screen: understands newlines, returns, cursor up and erased lines."""
    rows, row, column = [""], 0, 0
    for count, command, character in re.findall(r"\x1b\[\??(\d*)(?:;\d+)*([A-Za-z])|([^\x1b])", text):
        if command == "A":
            row -= int(count or 1)
        elif command == "K":
            rows[row] = ""
        elif character == "\r":
            column = 0
        elif character == "\n":
            row, column = row + 1, 0
            rows += [""] * (row + 1 - len(rows))
        elif character:
            rows[row] = rows[row].ljust(column)[:column] + character + rows[row][column + 1 :]
            column += 1
    return [line.rstrip() for line in rows]


def test_plain_output_has_a_line_per_outer_step_and_few_progress_lines(tmp_path: Path) -> None:
    console, file = printed(terminal=False)
    clock = Clock()
    tracker = ConsoleTracker(console, clock)
    tracker.start(run_start(tmp_path))
    for block in range(1, 21):
        clock.now += PLAIN_INTERVAL / 4
        tracker.inner(inner_block(0, 10 * block))
    tracker.outer(outer_record(0))
    tracker.finish(run_end(tmp_path, message="all step sizes are small"))
    start, *progress, outer, end = file.getvalue().splitlines()
    assert all(fact in start for fact in (str(tmp_path), "cpu, 2 ranks", "tangents 9", "outer steps 3"))
    assert len(progress) == 5  # 20 blocks, a quarter of the interval apart
    assert all(line.startswith("outer step 0, inner step ") for line in progress)
    assert outer == (
        "outer step 0 done: horizon 200, val loss 2.3, val accuracy 11.0%, 4.2s; lr 0.3 1e-300; momentum 0.5"
    )
    for fact in ("finished", "all step sizes are small", "62.5%", "0.75", "outer step 1", str(tmp_path)):
        assert fact in end
    assert file.getvalue().isascii()
    assert "\x1b" not in file.getvalue()


def test_progress_says_how_long_it_takes(tmp_path: Path) -> None:
    console, file = printed(terminal=False)
    clock = Clock()
    tracker = ConsoleTracker(console, clock)
    tracker.start(run_start(tmp_path, inner={"epochs": [1, 10, 10]}))
    clock.now += 500  # the first steps of a run start it up
    tracker.inner(inner_block(0, 10))
    assert "left" not in file.getvalue()
    clock.now += 20  # 10 of 200 steps in 20 s: 360 s for the rest, then two horizons of ten times 400 s each
    tracker.inner(inner_block(0, 20))
    assert "0.5 steps/s, 6m00s left, run about 2h19m" in file.getvalue()


def test_the_last_horizon_is_the_rest_of_the_run(tmp_path: Path) -> None:
    console, file = printed(terminal=False)
    clock = Clock()
    tracker = ConsoleTracker(console, clock)
    tracker.start(run_start(tmp_path, first_outer_step=2, resumed=True))
    for stop, seconds in ((100, 30), (110, 1), (120, PLAIN_INTERVAL)):  # 20 steps in 11 s since it has started up
        clock.now += seconds
        tracker.inner(inner_block(2, stop))
    assert "resumed at 2" in file.getvalue()
    assert "1.82 steps/s, 44s left\n" in file.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_texts_are_not_taken_for_markup(tmp_path: Path, terminal: bool) -> None:
    console, file = printed(terminal, width=200)
    tracker = ConsoleTracker(console)
    folder = tmp_path / "[red]run[/blue]"
    tracker.start(run_start(folder))
    tracker.note("bad [bold]bucket[/nothing]")
    tracker.finish(run_end(folder, message="stopped [/]"))
    text = "".join(screen(file.getvalue()))
    assert "bad [bold]bucket[/nothing]" in text
    assert "stopped [/]" in text
    assert text.count("[red]run[/blue]") == 2


def test_a_terminal_shows_a_table_and_no_leftovers(tmp_path: Path) -> None:
    console, file = printed(terminal=True)
    tracker = ConsoleTracker(console)
    run_dir = Path("runs/digits-lenet-20260102-030405")
    tracker.start(run_start(run_dir))
    many = {"lr": [0.1 / (bucket + 1) for bucket in range(40)], "momentum": [0.5] * 7, "weight_decay": [3e-4]}
    for step in range(3):
        tracker.inner(inner_block(step, 100))
        tracker.outer(outer_record(step, hyperparameters=many, val_accuracy=None if step else 0.5))
    tracker.finish(run_end(run_dir))
    lines = screen(file.getvalue())
    assert max(map(len, lines)) <= 80
    assert "inner" not in "".join(lines)
    assert not any(re.search(r"tangents live|\(\d of 3\)", line) for line in lines)  # the live line is gone
    rows = [line for line in lines if re.match(r"\s+\d\s+200 ", line)]
    assert [row.split()[:4] for row in rows] == [
        ["0", "200", "2.3", "50.0%"],
        *(["1", "200", "2.3", "-"], ["2", "200", "2.3", "-"]),
    ]
    assert all(re.search(r"lr 0\.1 0\.05 .*… .*0\.0025$", row) for row in rows)
    assert sum("momentum 0.5 ×7 · weight_decay 0.0003" in line for line in lines) == 3
    assert any("val accuracy 62.5%, val loss 0.75, at outer step 1" in line for line in lines)
    assert any("schedule.json" in line for line in lines)


def test_the_live_line_says_where_the_run_is(tmp_path: Path) -> None:
    console, file = printed(terminal=True)
    clock = Clock()
    tracker = ConsoleTracker(console, clock)
    tracker.start(run_start(tmp_path))
    for stop in (90, 100):
        clock.now += 10
        tracker.inner(inner_block(0, stop))
    tracker.note("look here")  # a print shows the live line again below it
    lines = screen(file.getvalue())
    tracker.finish(run_end(tmp_path, "interrupted"))
    assert " note: look here" in lines
    bar = next(line for line in lines if line.startswith(" outer step 0 (1 of 3)"))
    assert bar.endswith("100/200")
    assert any("4/9 tangents live · loss 1.5 · 1 steps/s · 1m40s left · run about 8m20s" in line for line in lines)
    assert any("interrupted" in line for line in screen(file.getvalue()))


@pytest.mark.parametrize("terminal", [True, False])
def test_the_end_says_what_to_do_next_in_lines_that_can_be_copied(tmp_path: Path, terminal: bool) -> None:
    console, file = printed(terminal)
    tracker = ConsoleTracker(console)
    tracker.start(run_start(tmp_path))
    line = f"fds-dist optimize --resume {'a-long-folder/' * 6}run"
    end = run_end(tmp_path, "interrupted", "stopped in outer step 1")
    tracker.finish(replace(end, next_steps={"continue": line, "read more": "README.md"}))
    last = [text.strip() for text in file.getvalue().splitlines()[-2:]]
    if terminal:
        assert last == [f"continue   {line}", "read more  README.md"]
    else:
        assert last == [f"to continue: {line}", "to read more: README.md"]


@pytest.mark.parametrize("terminal", [True, False])
def test_a_run_without_a_schedule_promises_none(tmp_path: Path, terminal: bool) -> None:
    console, file = printed(terminal, width=200)
    tracker = ConsoleTracker(console)
    tracker.start(run_start(tmp_path))
    tracker.finish(replace(run_end(tmp_path, "failed", "no data"), schedule=None))
    assert "schedule.json" not in file.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_the_end_says_first_what_was_gained_and_what_to_use(tmp_path: Path, terminal: bool) -> None:
    console, file = printed(terminal, width=200)
    tracker = ConsoleTracker(console)
    tracker.start(run_start(Path("runs/one")))
    judged = {name: JudgedCandidate.of([loss], [None]) for name, loss in (("last", 0.5), ("start", 2.0))}
    end = replace(run_end(Path("runs/one")), result="last", verdict=Verdict.of(1, 200, judged))
    tracker.finish(end)
    text = file.getvalue()
    said = [
        "gained",
        "from val loss 2 to 0.5, judged on 1 fresh seed",
        "use",
        "schedule.json: the values after",
    ]
    places = [text.index(words) for words in [*said, "judged", "best", "results"]]
    assert places[:4] == sorted(places[:4])
    assert max(places[:4]) < min(text.index(f"{name} val loss") for name in ("last", "start"))
    file.truncate(0)
    tracker.finish(replace(end, verdict=None))
    assert "gained" not in file.getvalue()
    assert "nothing has judged (outer.judge_seeds)" in file.getvalue()
    file.truncate(0)
    tracker.finish(replace(end, status="failed", verdict=None))
    assert not re.search(r"\buse\b", file.getvalue())


def test_a_run_whose_work_is_unknown_promises_no_time(tmp_path: Path) -> None:
    console, file = printed(terminal=False)
    tracker = ConsoleTracker(console)
    tracker.start(replace(run_start(tmp_path), work=()))
    tracker.inner(inner_block(0, 10))
    tracker.outer(outer_record(0))
    assert "loss 1.5\n" in file.getvalue()
    assert "left" not in file.getvalue()
