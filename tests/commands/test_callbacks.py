"""Callbacks and trackers from Python: what they hear, how a callback stops a search, and what a fault in one does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blob_searches import CONFIG, optimize
from launching import start_ranks

import fds_dist


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Heard(fds_dist.Callback):
    """Keeps all events, and answers a hook by a function of its event."""

    def __init__(self, **answers: Callable[[Any], Any]) -> None:
        self.events: list[tuple[str, Any]] = []
        self.answers = answers

    def hear(self, hook: str, event: Any) -> Any:
        self.events.append((hook, event))
        return self.answers.get(hook, lambda event: None)(event)

    def run_start(self, run: fds_dist.RunStart) -> Any:
        return self.hear("run_start", run)

    def inner_block(self, block: fds_dist.InnerBlock) -> Any:
        return self.hear("inner_block", block)

    def outer_step(self, record: fds_dist.OuterRecord) -> Any:
        return self.hear("outer_step", record)

    def run_end(self, end: fds_dist.RunEnd) -> None:
        self.hear("run_end", end)

    def of(self, hook: str) -> list[Any]:
        return [event for name, event in self.events if name == hook]


def raising(error: Exception) -> Callable[[Any], Any]:
    def answer(event: Any) -> Any:
        raise error

    return answer


def after_outer_step(number: int, answer: Any) -> Callable[[fds_dist.OuterRecord], Any]:
    return lambda record: answer if record.outer_step == number else None


# --- what callbacks hear ---


def test_hooks_hear_the_whole_run_in_order() -> None:
    heard = Heard()
    result = optimize(callbacks=[heard])
    assert [hook for hook, _ in heard.events] == ["run_start", *(["inner_block"] * 4 + ["outer_step"]) * 3, "run_end"]
    (start,), (end,) = heard.of("run_start"), heard.of("run_end")
    assert (start.run_dir, start.outer_steps, start.tangents, start.resumed) == (result.run_dir, 3, 2, False)
    assert (end.status, end.message) == ("finished", "")
    assert heard.of("outer_step") == result.history
    steps = [block.steps for block in heard.of("inner_block") if block.outer_step == 1]
    assert [step for block in steps for step in block] == [0, 1, 2, 3]


def test_an_outer_step_is_on_disk_before_its_hook() -> None:
    lines: list[int] = []

    def count(record: fds_dist.OuterRecord) -> None:
        lines.append(len(Path("runs/run/history.jsonl").read_text().splitlines()))
        assert Path(f"runs/run/checkpoints/outer_{record.outer_step + 1:04d}.json").is_file()

    optimize(callbacks=[Heard(outer_step=count)])
    assert lines == [1, 2, 3]


# --- stopping ---


@pytest.mark.parametrize("raised", [False, True])
def test_a_callback_stops_after_an_outer_step(raised: bool, capsys: pytest.CaptureFixture[str]) -> None:
    stop = fds_dist.Stop("good [enough]")
    answer = raising(stop) if raised else after_outer_step(1, stop)
    heard = Heard(outer_step=answer)
    result = optimize(callbacks=[heard], progress=True)
    done = 1 if raised else 2
    assert len(result.history) == done
    assert fds_dist.load_schedule(result.run_dir) == result.schedule
    closing = f"{done} outer step{'s' * (done > 1)} done, stopped by Heard: good [enough]"
    assert closing in capsys.readouterr().out
    assert [(end.status, end.message) for end in heard.of("run_end")] == [("finished", closing)]

    whole = optimize("name=whole")
    resumed = optimize(resume=result)
    assert resumed.schedule == whole.schedule
    assert len(resumed.history) == 3


def test_a_callback_stops_within_an_inner_run_and_before_the_first() -> None:
    heard = Heard(inner_block=lambda block: fds_dist.Stop() if (block.outer_step, block.steps.stop) == (1, 2) else None)
    result = optimize(callbacks=[heard])
    assert len(result.history) == 1
    assert heard.events[-1][1].message == "1 outer step done, stopped by Heard"
    assert heard.events[-2][1].steps == range(1, 2)
    assert optimize(resume=result).schedule == optimize("name=whole").schedule

    result = optimize("name=at-once", callbacks=[Heard(run_start=lambda run: fds_dist.Stop("no"))])
    assert result.history == []
    assert result.best_schedule is None


def test_all_callbacks_hear_an_event_that_one_of_them_stops_at() -> None:
    first, second = Heard(outer_step=lambda record: fds_dist.Stop("a")), Heard(outer_step=lambda _: fds_dist.Stop("b"))
    optimize(callbacks=[first, second])
    assert len(first.of("outer_step")) == len(second.of("outer_step")) == 1
    assert second.of("run_end")[0].message.endswith("stopped by Heard: a; Heard: b")


# --- faults ---


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            raising(ValueError("my [mistake]")),
            r"^callbacks: Heard.outer_step raised ValueError: my \[mistake\] at .*:\d+$",
        ),
        (lambda record: True, r"^callbacks: Heard.outer_step returned true; expected None .* fds_dist.Stop\(reason\)$"),
    ],
)
def test_a_fault_in_a_callback_is_one_line_and_loses_nothing(answer: Any, message: str) -> None:
    heard = Heard(outer_step=answer)
    with pytest.raises(fds_dist.UserError, match=message):
        optimize(callbacks=[heard])
    assert heard.of("run_end")[0].status == "failed"
    assert len(fds_dist.load_run("runs/run").history) == 1
    assert optimize(resume="runs/run").schedule == optimize("name=whole").schedule


def test_a_fault_at_the_end_is_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    result = optimize(callbacks=[Heard(run_end=raising(OSError("disk full")))], progress=True)
    assert len(result.history) == 3
    assert "note: callbacks: Heard.run_end raised OSError: disk full" in capsys.readouterr().out


def test_what_is_no_callback_or_tracker_is_named_with_the_other_faults() -> None:
    arguments: dict[str, Any] = {"callbacks": [Heard(), Heard], "trackers": [print]}
    with pytest.raises(fds_dist.UserError) as error:
        optimize("outer.steps=0", **arguments)
    assert [fault.key for fault in error.value.faults] == ["outer.steps", "callbacks[1]", "trackers[0]"]
    assert "subclass of fds_dist.Tracker" in str(error.value)
    with pytest.raises(fds_dist.UserError, match=r"^callbacks: .*; expected a list"):
        optimize(callbacks=Heard())
    assert not Path("runs").exists()


# --- ranks ---

ON_TWO_RANKS = """
import json, os, sys
import fds_dist

rank = int(os.environ["RANK"])

class Second(fds_dist.Callback):
    def __init__(self, hook, failing):
        self.heard, self.failing = 0, failing
        setattr(type(self), hook, type(self).hear)

    def hear(self, event):
        self.heard += 1
        if self.heard == 2:
            return 1 / 0 if self.failing else fds_dist.Stop("enough")

ends = []
config, *jobs = json.loads(sys.argv[1])
for hook, failing, override, first_alone in jobs:
    kind = type("Early", (Second,), {})
    callback = kind(hook, failing)
    callbacks = [] if rank and first_alone else [callback]
    try:
        result = fds_dist.optimize(config, [override], callbacks=callbacks, progress=False)
        ends.append([callback.heard, len(result.history), len(os.listdir("runs"))])
    except fds_dist.UserError as error:
        ends.append([callback.heard, str(error)[:60], len(os.listdir("runs"))])
open(f"ends-{rank}.json", "w").write(json.dumps(ends))
"""


def test_rank_0_calls_and_all_ranks_stop(tmp_path: Path) -> None:
    failed = "callbacks: Early.inner_block raised ZeroDivisionError: divisi"
    jobs = {
        ("outer_step", False, "mesh.replica=1", False): 2,
        ("outer_step", False, "mesh.replica=1", True): 2,
        ("inner_block", False, "mesh.replica=1", False): 0,
        ("inner_block", True, "mesh.replica=1", True): failed,
        ("inner_block", False, "mesh.replica=2", False): 1,  # replicas end their outer step
        ("inner_block", True, "mesh.replica=2", False): failed,
    }
    ended = start_ranks(["-c", ON_TWO_RANKS, json.dumps([CONFIG, *jobs])], 2, [tmp_path])
    assert [rank.status for rank in ended] == [0, 0], ended
    first, other = (json.loads((tmp_path / f"ends-{rank}.json").read_text()) for rank in (0, 1))
    assert [end for _, end, _ in first] == [end[:60] if isinstance(end, str) else end for end in jobs.values()]
    assert [end for _, end, _ in other] == [end for _, end, _ in first]
    assert {heard for heard, *_ in other} == {0}
    assert [heard for heard, *_ in first] == [2] * 6


# --- trackers ---


class Rows(fds_dist.Tracker):
    """Keeps validation losses; fails on request."""

    def __init__(self, fails: bool = False) -> None:
        self.losses: list[float] = []
        self.fails = fails
        self.ended = ""

    def outer(self, record: fds_dist.OuterRecord) -> None:
        if self.fails:
            raise OSError("no network")
        self.losses.append(record.val_loss)

    def finish(self, end: fds_dist.RunEnd) -> None:
        self.ended = end.status


def test_a_tracker_of_ones_own_follows_the_search_and_cannot_end_it(capsys: pytest.CaptureFixture[str]) -> None:
    rows, failing = Rows(), Rows(fails=True)
    result = optimize(trackers=[failing, rows], progress=True)
    assert rows.losses == [record.val_loss for record in result.history]
    assert (rows.ended, failing.ended) == ("finished", "")
    assert "note: Rows failed and stays off for the rest of the run: no network" in capsys.readouterr().out
