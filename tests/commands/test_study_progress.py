"""`verify`, `compare` and a long judging say how far they are; none of it reaches standard output's tables."""

from __future__ import annotations

from pathlib import Path

import pytest
from comparing import HORIZON, run, small_problem
from problems import ONE_RANK, image_task, make_problem, mlp

import fds_dist
from fds_dist.commands.verify.derivatives import compare_derivatives
from fds_dist.inner.dry_run import dry_run
from fds_dist.outer import judge
from fds_dist.outer.judge import Judge, judging

TINY = {
    "task": {"name": "digits"},
    "model": {"name": "mlp", "hidden": [4]},
    "hyperparameters": {"lr": {"init": 0.1, "step": 0.05}},
}


def test_verify_counts_derivatives() -> None:
    problem, _ = dry_run(make_problem(image_task(mlp), {"lr": [0.2, 0.2], "momentum": [0.5]}), "auto", "reverse")
    heard: list[tuple[int, int]] = []
    compare_derivatives(problem, 6, ONE_RANK, count=lambda done, total: heard.append((done, total)))
    total = 3 + 3  # reverse mode, two forward methods, the differences of each of three numbers
    assert heard == [(done, total) for done in range(total)]


def test_compare_counts_the_plain_steps_of_its_budgets(tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    count = lambda done, total: heard.append((done, total))  # noqa: E731
    comparison = run(tmp_path, methods=["fds", "random"], count=count)
    total = round(2 * comparison.budget)
    done = [each for each, _ in heard]
    assert {each for _, each in heard} == {total}
    assert done == sorted(done)
    assert done[-1] == total
    assert len(set(done)) > 2  # within the searches, too
    again: list[int] = []
    run(tmp_path, methods=["fds", "random"], count=lambda done, total: again.append(done))
    assert again[-1] == total


def test_a_long_judging_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(0, 1000, 20))
    monkeypatch.setattr(judge.time, "monotonic", lambda: next(ticks))
    said: list[str] = []
    problem = small_problem()
    Judge(judging(problem), HORIZON, 4, ONE_RANK, say=said.append).judge([problem.space.initial()])
    assert said == ["judging 1 value on 4 fresh seeds: 4 runs", "judging: 2 of 4 runs done, about 40s left"]


def test_progress_goes_to_standard_error(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fds_dist.common.console.PLAIN_INTERVAL", -1.0)
    assert fds_dist.verify(TINY, steps=3, progress=True).verification.passed
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert lines[-1].startswith(f"verify: {len(lines)} of {len(lines) + 1} derivatives done, about ")
