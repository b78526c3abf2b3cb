"""Shapes: weights by their definition, windows, segments, values within those that are read, and the files."""

from __future__ import annotations

import json
import random
from itertools import pairwise

import numpy as np
import pytest

from fds_dist.common.faults import UserError
from fds_dist.schedule.schedule import Schedule
from fds_dist.schedule.shapes import SHAPES, Constant, Linear, Shape, segments, shape_of, stretches

SIZES = [(buckets, horizon) for horizon in (1, 2, 3, 7, 12, 61) for buckets in range(1, min(horizon, 13) + 1)]


def weights(shape: Shape, horizon: int) -> np.ndarray:
    """[buckets, T] The weights of every step."""
    table = np.zeros((shape.buckets, horizon))
    for step in range(horizon):
        for bucket, weight in shape.readings(step, horizon):
            table[bucket, step] = weight
    return table


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(("buckets", "horizon"), SIZES)
def test_weights_are_positive_within_the_windows_and_add_up_to_one(name: str, buckets: int, horizon: int) -> None:
    shape = shape_of(name, buckets)
    table = weights(shape, horizon)
    assert table.sum(axis=0) == pytest.approx(np.ones(horizon), rel=0, abs=2e-16)  # one rounding each
    windows = [shape.window(bucket, horizon) for bucket in range(buckets)]
    assert [[*np.flatnonzero(row)] for row in table] == [[*window] for window in windows] and (table >= 0).all()
    assert all(before.start < after.start for before, after in pairwise(windows)) and windows[0].start == 0
    for step in range(horizon):
        read = [reading.bucket for reading in shape.readings(step, horizon)]
        assert read == sorted(set(read))
    newest = [max(np.flatnonzero(column)) for column in table.T]
    spans = stretches(shape, horizon)
    assert [bucket for bucket, stretch in enumerate(spans) for _ in stretch] == newest


@pytest.mark.parametrize(("buckets", "horizon"), [size for size in SIZES if size[0] > 1])
def test_linear_interpolates_between_knots_from_the_first_step_to_the_last(buckets: int, horizon: int) -> None:
    rng = np.random.default_rng(buckets)
    values = rng.uniform(0.1, 1, buckets)
    knots = np.array([knot * (horizon - 1) / (buckets - 1) for knot in range(buckets)])
    schedule = Schedule(horizon, {"lr": tuple(values.tolist())}, shapes={"lr": "linear"})
    learned = [schedule.at(step)["lr"] for step in range(horizon)]
    # A few roundings of numbers below 1.
    assert learned == pytest.approx(np.interp(np.arange(horizon), knots, values), rel=0, abs=1e-15)
    assert learned[0] == values[0] and learned[-1] == schedule.at(10**9)["lr"] == values[-1]
    assert all(min(values) <= value <= max(values) for value in learned)


def test_a_knot_begins_one_step_after_the_knot_before_it() -> None:
    windows = [Linear(4).window(knot, 10) for knot in range(4)]  # knots at the steps 0, 3, 6 and 9
    assert windows == [range(3), range(1, 6), range(4, 9), range(7, 10)]


def test_alike_knots_give_exactly_their_value_and_one_knot_is_a_constant() -> None:
    for value in (0.1, 0.9, 1 / 3, 0.7):
        schedule = Schedule(101, {"momentum": (value,) * 8, "lr": (value,)}, shapes={"momentum": "linear"})
        assert all(schedule.at(step) == {"momentum": value, "lr": value} for step in range(101))
    assert Schedule(5, {"lr": (0.1,)}, shapes={"lr": "linear"}) == Schedule(5, {"lr": (0.1,)})


@pytest.mark.parametrize("seed", range(5))
def test_segments_are_the_longest_stretches_that_read_the_same_buckets(seed: int) -> None:
    rng = random.Random(seed)
    horizon = rng.randint(9, 60)
    shapes: dict[str, Shape] = {
        "lr": Linear(rng.randint(2, 9)), "momentum": Constant(rng.randint(1, 9)), "eps": Linear(rng.randint(2, 9))
    }  # fmt: skip

    def read(step: int) -> dict[str, list[int]]:
        return {name: [reading.bucket for reading in shape.readings(step, horizon)] for name, shape in shapes.items()}

    pieces = list(segments(shapes, horizon))
    assert [step for piece in pieces for step in range(piece.start, piece.stop)] == list(range(horizon))
    assert all(read(step) == read(piece.start) for piece in pieces for step in range(piece.start, piece.stop))
    assert all(read(before.start) != read(after.start) for before, after in pairwise(pieces))
    rows = [piece.row(step) for piece in pieces for step in range(piece.start, piece.stop)]
    assert sorted(set(rows)) == list(range(sum(len(piece.steps_read) for piece in pieces)))
    assert all(
        piece.varies or len({piece.row(step) for step in range(piece.start, piece.stop)}) == 1 for piece in pieces
    )


def test_vectors_are_interpolated_entry_by_entry_and_stretching_keeps_the_knots() -> None:
    schedule = Schedule(5, {"mix": ((0.0, 1.0), (1.0, 0.5))}, shapes={"mix": "linear"})
    assert [schedule.at(step)["mix"] for step in (0, 1, 4)] == [(0.0, 1.0), (0.25, 0.875), (1.0, 0.5)]
    long = schedule.stretch(9)
    assert long.at(2)["mix"] == (0.25, 0.875) and long.at(8)["mix"] == (1.0, 0.5)
    assert schedule.stretch(1).at(0)["mix"] == (0.0, 1.0)


def test_the_file_names_shapes_and_files_without_them_are_constant() -> None:
    constant = Schedule(10, {"lr": (0.1, 0.2)})
    assert "shape" not in json.loads(constant.to_json()) and json.loads(constant.to_json())["version"] == 1
    linear = Schedule(10, {"lr": (0.1, 0.2), "momentum": (0.9,)}, shapes={"lr": "linear"})
    content = json.loads(linear.to_json())
    assert content["shape"] == {"lr": "linear"} and content["version"] == 2  # older programs must not misread it
    assert Schedule.from_json(linear.to_json()) == linear != constant
    for shape, message in (
        ({"lr": "cubic"}, "file: shape.lr: 'cubic' is not valid; expected one of constant, linear per name"),
        ({"eps": "linear"}, "shapes of hyperparameters that were not learned: eps"),
    ):
        with pytest.raises(UserError, match=message):
            Schedule.from_json(json.dumps({**content, "shape": shape}), "file")
