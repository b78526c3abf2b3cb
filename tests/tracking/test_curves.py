"""`curves.jsonl`: small, continued by a resumed run, and never in the way of a report."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from events import inner_block, outer_record, run_start

from fds_dist.tracking.curves import Curve, CurvesFile, read_curves


def recorded(path: Path, outer_steps: range, resumed: bool = False) -> list[Curve]:
    file = CurvesFile(path)
    file.start(run_start(path.parent, outer_steps.start, resumed))
    for outer_step in outer_steps:
        for stop in (10, 20):
            file.inner(replace(inner_block(outer_step, stop), train_loss=outer_step + stop / 100))
        file.outer(outer_record(outer_step))
    return read_curves(path)


def test_each_outer_step_has_a_line_with_its_blocks(tmp_path: Path) -> None:
    curves = recorded(tmp_path / "curves.jsonl", range(2))
    assert curves == [Curve(0, 200, [10, 20], [0.1, 0.2]), Curve(1, 200, [10, 20], [1.1, 1.2])]


def test_a_resumed_run_writes_the_repeated_outer_steps_once(tmp_path: Path) -> None:
    path = tmp_path / "curves.jsonl"
    recorded(path, range(3))
    with path.open("a") as file:
        file.write('{"outer_step": 3, "hor')
    curves = recorded(path, range(1, 3), resumed=True)
    assert [curve.outer_step for curve in curves] == [0, 1, 2]


def test_blocks_of_an_outer_step_that_was_given_up_are_not_those_of_the_next(tmp_path: Path) -> None:
    file = CurvesFile(tmp_path / "curves.jsonl")
    file.start(run_start(tmp_path))
    file.inner(inner_block(0, 10))
    file.inner(inner_block(1, 20))
    file.outer(outer_record(1))
    assert [curve.steps for curve in read_curves(tmp_path / "curves.jsonl")] == [[20]]


def test_a_loss_that_is_not_finite_is_read_as_nan(tmp_path: Path) -> None:
    path = tmp_path / "curves.jsonl"
    file = CurvesFile(path)
    file.start(run_start(tmp_path))
    file.inner(replace(inner_block(0, 10), train_loss=math.inf))
    file.outer(outer_record(0))
    assert math.isnan(read_curves(path)[0].train_losses[0])


def test_what_is_missing_or_damaged_is_no_curve(tmp_path: Path) -> None:
    path = tmp_path / "curves.jsonl"
    assert read_curves(path) == []
    path.write_text("nonsense\n")
    assert read_curves(path) == []
    assert [curve.outer_step for curve in recorded(path, range(1), resumed=True)] == [0]
