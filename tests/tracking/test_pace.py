"""The time left of a search: right within 30 % from a twentieth of its first outer step on."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from fds_dist.build import build
from fds_dist.commands.inputs import draft_of
from fds_dist.commands.optimize.work import judging_steps, outer_work
from fds_dist.distributed.environment import LaunchEnvironment
from fds_dist.inner import rehearsal
from fds_dist.tracking.pace import Pace
from fds_dist.tracking.records import InnerBlock, OuterWork, Stage

BUCKETS = OuterWork((*(Stage(100, 3.0 + bucket) for bucket in range(7)),))
"""A learning rate of seven buckets beside two more numbers: from 3 live tangents to 9."""
LONG = OuterWork((*(Stage(1000, 3.0 + bucket) for bucket in range(7)),))
REVERSE = OuterWork((Stage(700, 0.0),), after=2100.0)

ALLOWED = 0.3


def errors(
    work: list[OuterWork],
    plain: float,
    tangent: float,
    judging: float = 0.0,
    noise: float = 0.0,
    fixed: float = 0.0,
    start_up: float = 0.0,
) -> list[tuple[float, float]]:
    """Of each block from 5 % of the first outer step on: the relative errors of the time left in the outer step and of
    the whole search, whose steps take `plain` + `tangent`·k seconds, up to `noise`, and whose outer steps `fixed` more.
    The first one takes `start_up` seconds before its first step.
    """
    draw, now = random.Random(0), 100.0
    pace, told, ends = Pace(work, judging, now), [], []
    for number, each in enumerate(work):
        horizon = sum(stage.steps for stage in each.stages)
        for start in range(0, horizon, horizon // 100):
            steps = range(start, start + horizon // 100)
            seconds = len(steps) * (plain + tangent * each.live(steps.start, steps.stop))
            now += seconds * (1 + noise * draw.uniform(-1, 1)) + (fixed if start == 0 else 0.0)
            now += start_up if start == number == 0 else 0.0
            block = InnerBlock(number, steps, horizon, 0, 1.0, {})
            pace.add(now, block)
            if number or steps.stop >= 0.05 * horizon:
                left = pace.left(block)
                told.append((number, now, left, left + pace.later(number)))
        now += plain * each.after
        ends.append(now)
        pace.end(now, number)
    end = now + plain * judging
    # Of the last twentieth of an outer step the error is in parts of that.
    return [
        (abs(left - (ends[number] - at)) / max(ends[number] - at, 0.05 * ends[0]), abs(whole - (end - at)) / (end - at))
        for number, at, left, whole in told
        if end > at
    ]


@pytest.mark.parametrize("noise", [0.0, 0.2])
@pytest.mark.parametrize("work", [[BUCKETS] * 3, [BUCKETS, LONG, LONG], [REVERSE] * 3], ids=["alike", "longer", "back"])
def test_time_left_is_right_within_30_percent_by_the_cost_model(work: list[OuterWork], noise: float) -> None:
    shown = errors(work, 0.01, 0.02, judging=12 * 700, noise=noise, fixed=1.0)
    assert max(error for pair in shown for error in pair) < ALLOWED


@pytest.mark.parametrize("work", [[BUCKETS] * 3, [REVERSE] * 3, [BUCKETS, LONG, LONG]], ids=["alike", "back", "longer"])
def test_start_up_is_no_part_of_the_speed(work: list[OuterWork]) -> None:
    """Compilation may take as long as the whole outer step."""
    shown = errors(work, 0.01, 0.02, start_up=100.0)
    assert max(error for pair in shown for error in pair) < 1e-6  # rounding


def test_later_outer_steps_have_their_validation() -> None:
    """A second of files and validation after 7 seconds of steps is expected after the next ones, too."""
    work = OuterWork((Stage(700, 0.0),))
    pace, now = Pace([work] * 3, 0.0, 0.0), 1000.0  # the run starts up
    for start in range(0, 700, 7):
        block = InnerBlock(0, range(start, start + 7), 700, 0, 1.0, {})
        pace.add(now, block)
        now += 0.07
    now += 1.0 - 0.07
    pace.end(now, 0)
    assert pace.later(0) == pytest.approx(2 * 7.0 * (1 + 1 / 6.93))  # rounding


def test_other_costs_of_a_tangent_are_learned_when_their_number_grows() -> None:
    """Vectorized tangents cost next to nothing on a large GPU, others more than the model says."""
    for plain, tangent in ((0.05, 0.001), (0.01, 0.04)):
        shown = errors([BUCKETS] * 3, plain, tangent)
        after = shown[45:]  # half of the first outer step: four numbers of live tangents were measured
        assert max(error for pair in after for error in pair) < ALLOWED


def test_without_variance_in_the_live_tangents_the_model_decides() -> None:
    pace = Pace([BUCKETS], 0.0, 0.0)
    pace.add(50.0, InnerBlock(0, range(0, 10), 700, 3, 1.0, {}))  # these start the run up
    assert not pace.is_measured
    block = InnerBlock(0, range(10, 20), 700, 3, 1.0, {})
    pace.add(57.0, block)  # 0.7 seconds per step of 1 + 2·3 plain steps: 0.1 each
    expected = 0.1 * sum((80 if stage.tangents == 3 else 100) * (1 + 2 * stage.tangents) for stage in BUCKETS.stages)
    assert pace.left(block) == pytest.approx(expected)  # rounding
    assert pace.later(0) == 0.0


def test_the_work_of_a_search_is_that_of_its_plan(tmp_path: Path) -> None:
    config = {
        "task": {"name": "own_tasks:blobs"},
        "inner": {"epochs": [1, 2]},
        "hyperparameters": {"lr": {"init": 0.05, "step": 0.02, "buckets": 2}, "momentum": {"init": 0.5}},
        "outer": {"optimizer": "sign", "steps": 2, "judge_seeds": 3},
        "consistency": {"witness": "off"},
    }
    built = build(draft_of(config, []), LaunchEnvironment())
    short, long = built.settings.horizons
    assert long == 2 * short
    assert outer_work(built) == (
        OuterWork((Stage(short // 2, 2.0), Stage(short - short // 2, 3.0))),
        OuterWork((Stage(short, 2.0), Stage(short, 3.0))),
    )
    candidates = 4 if built.config.outer.average > 1 else 3
    assert judging_steps(built, 1) == 3 * candidates * long
    backward = build(draft_of(config, ["estimator=reverse"]), LaunchEnvironment())
    assert [
        (work.stages, work.after > 2 * horizon)
        for work, horizon in zip(outer_work(backward), (short, long), strict=True)
    ] == [
        ((Stage(short, 0.0),), True),
        ((Stage(long, 0.0),), True),
    ]


def test_the_way_back_of_a_long_search_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "cost_of_way_back", lambda problem: 1.5)
    config = {"task": {"name": "own_tasks:blobs"}, "hyperparameters": {"lr": {"init": 0.05}}, "estimator": "reverse"}
    for steps, back in ((10, 3.0), (2000, 1.5)):
        overrides = [f"inner.steps={steps}", "outer.steps=2", "consistency.witness=off"]
        built = build(draft_of(config, overrides), LaunchEnvironment())
        problem = replace(built.problem, tangents=replace(built.problem.tangents, kept_bytes=10**9))
        assert [work.after for work in outer_work(replace(built, problem=problem))] == [back * steps] * 2
        problem = replace(built.problem, tangents=replace(built.problem.tangents, kept_bytes=0))
        assert [work.after for work in outer_work(replace(built, problem=problem))] == [(back + 1) * steps] * 2
