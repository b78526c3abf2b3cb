"""The hyperparameter space: named ↔ flat, bounds, and the scales that the outer optimizer moves on."""

from __future__ import annotations

import math
import random

import pytest
import torch

from fds_dist.common.domain import NATURAL_DOMAIN
from fds_dist.schedule.buckets import bucket_of
from fds_dist.schedule.space import Hyperparameter, HyperparameterSpace

SPACE = HyperparameterSpace(
    (
        Hyperparameter("lr", init=0.1, step=0.1, buckets=3),
        Hyperparameter("momentum", init=0.5, step=0.1),
        Hyperparameter("weight_decay", init=0.0, step=1e-4, buckets=2),
    ),
    {"eps": 1e-8},
)


def test_lambda_lists_hyperparameters_in_order_each_with_its_buckets_in_order() -> None:
    assert SPACE.size == 6
    assert SPACE.names == ("lr", "momentum", "weight_decay", "eps")
    assert SPACE.offsets == {"lr": 0, "momentum": 3, "weight_decay": 4}
    assert SPACE.initial() == [0.1, 0.1, 0.1, 0.5, 0.0, 0.0]
    assert SPACE.unpack(range(6)) == {"lr": [0, 1, 2], "momentum": [3], "weight_decay": [4, 5]}
    assert [(owner.name, bucket) for owner, bucket, _ in SPACE.elements][2:5] == [
        ("lr", 2), ("momentum", 0), ("weight_decay", 0)
    ]  # fmt: skip


def test_pack_is_the_inverse_of_unpack_whatever_the_order_of_names() -> None:
    flat = [random.Random(0).random() for _ in range(SPACE.size)]
    named = SPACE.unpack(flat)
    assert SPACE.pack(named) == flat
    assert SPACE.pack(dict(reversed(named.items()))) == flat


@pytest.mark.parametrize(
    "named",
    [
        {"lr": [1.0, 2.0, 3.0], "momentum": [0.5]},
        {"lr": [1.0], "momentum": [0.5], "weight_decay": [0.0, 0.0]},
        {"lr": [1.0] * 3, "momentum": [0.5], "weight_decay": [0.0] * 2, "beta1": [0.9]},
    ],
)
def test_pack_refuses_names_and_counts_of_another_space(named: dict[str, list[float]]) -> None:
    with pytest.raises(ValueError, match="do not fit this space"):
        SPACE.pack(named)


@pytest.mark.parametrize("count", [5, 7])
def test_unpack_refuses_another_number_of_elements(count: int) -> None:
    with pytest.raises(ValueError):
        SPACE.unpack([0.0] * count)


@pytest.mark.parametrize("horizon", [3, 7, 100])
def test_starts_are_the_first_steps_that_read_each_element(horizon: int) -> None:
    first = [
        next(step for step in range(horizon) if bucket_of(step, owner.buckets, horizon) == bucket)
        for owner, bucket, _ in SPACE.elements
    ]
    assert SPACE.starts(horizon) == first


def test_schedule_reads_lambda_and_the_fixed_values() -> None:
    schedule = SPACE.schedule([1.0, 2.0, 3.0, 0.9, 4.0, 5.0], 6, {"name": "sgd"})
    assert schedule.at(0) == {"lr": 1.0, "momentum": 0.9, "weight_decay": 4.0, "eps": 1e-8}
    assert schedule.at(5) == {"lr": 3.0, "momentum": 0.9, "weight_decay": 5.0, "eps": 1e-8}
    assert schedule.optimizer == {"name": "sgd"}


def on_log_scale(name: str) -> Hyperparameter:
    return Hyperparameter(name, init=0.5, step=0.1, scale="log")


@pytest.mark.parametrize("name", ["lr", "momentum", "weight_decay", "beta1", "beta2"])
@pytest.mark.parametrize("value", [1e-6, 0.1, 0.5, 0.99, 0.999999])
def test_log_scale_is_undone_and_its_slope_is_a_derivative(name: str, value: float) -> None:
    owner = on_log_scale(name)
    coordinate = owner.to_scale(value)
    # One rounding of a coordinate of size |c| moves the value by |c|·slope·eps; the functions themselves by one eps.
    slack = 4 * 2**-52 * (1 + abs(coordinate))
    assert owner.from_scale(coordinate) == pytest.approx(value, rel=slack)
    step = 1e-4
    difference = (owner.from_scale(coordinate + step) - owner.from_scale(coordinate - step)) / (2 * step)
    # exp is its own third derivative: the central difference is off by step²/6 ≈ 2e-9 of the slope, and by rounding,
    # 1e-16·value/step, which counts where the slope 1 − value is 1e-6: 1e-12/1e-6.
    assert owner.scale_slope(value) == pytest.approx(difference, rel=3e-6)


def test_linear_scale_is_the_value_itself() -> None:
    owner = Hyperparameter("momentum", init=0.5, step=0.1)
    assert (owner.to_scale(0.3), owner.from_scale(-7.0), owner.scale_slope(0.3)) == (0.3, -7.0, 1.0)


@pytest.mark.parametrize("name", ["lr", "momentum"])
@pytest.mark.parametrize("coordinate", [-1e6, -800.0, -50.0, 800.0, 1e6])
def test_a_huge_step_on_the_log_scale_ends_where_another_can_start(name: str, coordinate: float) -> None:
    owner = on_log_scale(name)
    value = owner.from_scale(coordinate)
    assert math.isfinite(value)
    assert math.isfinite(owner.to_scale(value))


@pytest.mark.parametrize(("value", "clamped"), [(-1.0, 0.0), (0.0, 0.0), (0.3, 0.3), (0.5, 0.5), (2.0, 0.5)])
def test_clamp(value: float, clamped: float) -> None:
    assert Hyperparameter("lr", init=0.1, step=0.1, bounds=(0.0, 0.5)).clamp(value) == clamped


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["momentum", "beta1", "beta2"])
def test_the_largest_natural_value_is_below_one_in_every_type(name: str, dtype: torch.dtype) -> None:
    assert torch.tensor(NATURAL_DOMAIN[name][1], dtype=dtype).item() < 1
