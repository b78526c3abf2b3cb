"""The sign rule: the paper's path, bounds, scales, hypergradients that are zero or not finite, and when it ends."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import pairwise, permutations

import pytest

from fds_dist.common.domain import BELOW_ONE, NATURAL_DOMAIN
from fds_dist.outer.rules import OuterStep, SignRule
from fds_dist.schedule.space import Hyperparameter, HyperparameterSpace

NAN, INF = math.nan, math.inf


def single(
    name: str = "lr", init: float = 1.0, step: float = 0.1, bounds: tuple[float, float] | None = None, scale="linear"
) -> HyperparameterSpace:
    """A space of one element, with the natural bounds of `name`."""
    bounds = NATURAL_DOMAIN[name] if bounds is None else bounds
    return HyperparameterSpace((Hyperparameter(name, init, step, bounds=bounds, scale=scale),))


def run(space: HyperparameterSpace, path: Sequence[Sequence[float]], rule: SignRule | None = None) -> list[OuterStep]:
    """The outer steps along a path of hypergradients [steps][K]."""
    rule = rule or SignRule()
    values, state, done = space.initial(), rule.init(space), []
    for hypergradients in path:
        done.append(rule.update(space, values, hypergradients, state))
        values, state = done[-1].values, done[-1].state
    return done


def run_single(space: HyperparameterSpace, path: Sequence[float], rule: SignRule | None = None) -> list[OuterStep]:
    return run(space, [[hypergradient] for hypergradient in path], rule)


FIGURE_4 = {
    "momentum": (0.3, [0, 0, 0.3, 0.15, 0.225, 0.3, 0.2625, 0.281, 0.272]),
    "lr": (0.1, [0, 0.1, 0.2, 0.3, 0.25, 0.2, 0.15, 0.1, 0.125]),
    "weight_decay": (4e-4, [0, 0, 4e-4, 8e-4, 6e-4, 7e-4, 6.5e-4, 6e-4, 6.25e-4]),
}
"""Initial step and values before each outer step of the paper's figure 4; lr is its first bucket."""


@pytest.mark.parametrize("name", FIGURE_4)
def test_the_path_of_the_papers_figure_4_follows_from_its_signs(name: str) -> None:
    step, path = FIGURE_4[name]
    sizes = random.Random(0)  # only signs may count
    signs = [(before > after) - (before < after) for before, after in pairwise(path)]
    steps = run_single(single(name, init=0.0, step=step), [sign * sizes.uniform(1e-9, 1e9) for sign in signs])
    # Momentum is printed to three decimals, so half of the last one; the others exactly, but for float rounding.
    slack = 5e-4 if name == "momentum" else 1e-15
    assert [outer.values[0] for outer in steps] == pytest.approx(path[1:], abs=slack)


def test_a_zero_hypergradient_moves_nothing_and_the_sign_before_it_counts() -> None:
    steps = run_single(single(), [-1.0, 0.0, -0.0, 1.0])
    assert [outer.values for outer in steps] == [[1.1], [1.1], [1.1], [pytest.approx(1.05)]]
    assert [outer.state.steps for outer in steps] == [(0.1,), (0.1,), (0.1,), (0.05,)]


def test_the_step_shrinks_at_each_flip_alone() -> None:
    steps = run_single(single(), [-1, -1, 1, 1, -1, -1], SignRule(decay=0.25))
    assert [outer.state.steps[0] for outer in steps] == [0.1, 0.1, 0.025, 0.025, 0.00625, 0.00625]


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("scale", ["linear", "log"])
def test_a_hypergradient_that_is_not_finite_keeps_the_value_and_halves_the_step(bad: float, scale: str) -> None:
    steps = run_single(single(scale=scale), [-1.0, bad, bad, -1.0, bad], SignRule(decay=0.9))
    assert steps[0].values == steps[1].values == steps[2].values
    assert [outer.state.steps[0] for outer in steps] == [0.1, 0.05, 0.025, 0.025, 0.0125]
    assert [outer.non_finite for outer in steps] == [(), (0,), (0,), (), (0,)]
    assert [outer.state.failures for outer in steps] == [0, 1, 2, 0, 1]
    assert steps[3].values[0] > steps[2].values[0]  # the sign before counts: this is no flip


def test_an_element_that_is_not_finite_does_not_hold_up_the_others() -> None:
    space = HyperparameterSpace((Hyperparameter("lr", 1.0, 0.1, buckets=3, bounds=(0.0, INF)),))
    (outer,) = run(space, [[1.0, NAN, -1.0]])
    assert outer.values == [0.9, 1.0, 1.1]
    assert outer.state.steps == (0.1, 0.05, 0.1)
    assert outer.non_finite == (1,)
    assert not outer.converged


def test_shrinking_by_failures_is_never_called_converged() -> None:
    steps = run_single(single(), [-1.0] + [NAN] * 30)
    assert steps[-1].state.steps[0] < 1e-9
    assert not any(outer.converged for outer in steps)


@pytest.mark.parametrize("size", [5e-324, 1e-300, 1.0, 1.7e308])
@pytest.mark.parametrize("scale", ["linear", "log"])
@pytest.mark.parametrize("value", [1e-30, 1e30])
def test_any_finite_hypergradient_counts_by_its_sign(size: float, scale: str, value: float) -> None:
    space = single(init=value, step=1e-3 * value if scale == "linear" else 1e-3, scale=scale)
    assert run_single(space, [size])[0].values[0] < value < run_single(space, [-size])[0].values[0]


@pytest.mark.parametrize("name", ["lr", "weight_decay", "momentum"])
def test_a_value_at_its_lower_bound_stays_there_and_is_not_called_converged(name: str) -> None:
    steps = run_single(single(name, init=0.15, step=0.1), [1.0] * 8)
    assert [outer.values[0] for outer in steps] == [pytest.approx(0.05)] + [0.0] * 7
    assert not any(outer.converged for outer in steps)
    (back,) = run_single(single(name, init=0.0, step=0.1), [-1.0])
    assert back.values == [0.1]  # and it is free to leave


@pytest.mark.parametrize("name", ["lr", "weight_decay", "momentum"])
@pytest.mark.parametrize("scale", ["linear", "log"])
def test_values_never_leave_their_natural_domain(name: str, scale: str) -> None:
    rng = random.Random(0)
    space = single(name, init=0.5, step=0.7, scale=scale)
    low, high = NATURAL_DOMAIN[name]
    steps = run_single(space, [rng.choice((-1.0, 1.0, 1.0, 0.0, NAN)) for _ in range(200)], SignRule(decay=0.99))
    assert all(low <= outer.values[0] <= high for outer in steps)


def test_an_upper_bound_holds() -> None:
    steps = run_single(single("momentum", init=0.5, step=0.3, bounds=(0.0, 0.9)), [-1.0] * 3)
    assert [outer.values[0] for outer in steps] == [0.8, 0.9, 0.9]
    assert run_single(single("momentum", init=0.9, step=0.3), [-1.0])[0].values == [BELOW_ONE]


def test_null_bounds_let_values_become_negative() -> None:
    assert run_single(single(init=0.0, bounds=(-INF, INF)), [1.0])[0].values == [-0.1]


@pytest.mark.parametrize(
    ("tolerance", "flips"),
    [(0.05, 2), (0.0125, 4), (0.011, 4)],  # lr stays near 1: steps .1, .05, .025, .0125, .00625 after 0 to 4 flips
)
def test_it_ends_when_the_step_is_below_the_tolerance(tolerance: float, flips: int) -> None:
    steps = run_single(single(), [(-1.0) ** index for index in range(8)], SignRule(tolerance=tolerance))
    assert [outer.converged for outer in steps] == [index >= flips for index in range(8)]


def test_it_ends_only_when_every_step_is_below_the_tolerance() -> None:
    space = HyperparameterSpace((Hyperparameter("lr", 1.0, 0.01), Hyperparameter("weight_decay", 1.0, 0.1)))
    steps = run(space, [[1.0, (-1.0) ** index] for index in range(4)])
    assert [outer.converged for outer in steps] == [False, False, True, True]


def test_tolerance_is_relative_to_the_size_of_the_value() -> None:
    assert run_single(single(init=-100.0, step=1.0, bounds=(-INF, INF)), [1.0])[0].converged
    assert not run_single(single(init=1e-3, step=1e-3), [-1.0])[0].converged


def test_on_the_log_scale_a_step_is_a_factor() -> None:
    steps = run_single(single(init=0.1, step=math.log(2), scale="log"), [-1.0, -1.0, 1.0])
    # Each move is one exp and one log: a few roundings.
    assert [outer.values[0] for outer in steps] == pytest.approx([0.2, 0.4, 0.4 / math.sqrt(2)], rel=1e-14)


def test_on_the_log_scale_momentum_moves_its_distance_from_one() -> None:
    steps = run_single(single("momentum", init=0.9, step=math.log(2), scale="log"), [-1.0, -1.0, 1.0, 1.0])
    expected = [0.95, 0.975, 1 - 0.025 * math.sqrt(2), 0.95]
    assert [outer.values[0] for outer in steps] == pytest.approx(expected, rel=1e-14)  # as above


def test_on_the_log_scale_the_tolerance_is_the_step_itself() -> None:
    assert not run_single(single(init=100.0, step=0.1, scale="log"), [1.0])[0].converged
    assert run_single(single(init=1e-6, step=0.04, scale="log"), [1.0])[0].converged


def test_huge_steps_on_the_log_scale_leave_finite_values() -> None:
    for name in ("lr", "momentum"):
        space = single(name, init=0.5, step=1000.0, bounds=(-INF, INF), scale="log")
        steps = run_single(space, [-1.0, -1.0, 1.0, 1.0, -1.0])
        assert all(math.isfinite(outer.values[0]) for outer in steps)


def test_results_do_not_depend_on_the_order_of_hyperparameters() -> None:
    owners = (
        Hyperparameter("lr", 0.1, 0.1, buckets=3, bounds=(0.0, INF), scale="log"),
        Hyperparameter("momentum", 0.5, 0.2, buckets=2, bounds=(0.0, 0.99)),
        Hyperparameter("weight_decay", 0.0, 1e-4, bounds=(0.0, INF)),
    )
    rng = random.Random(0)
    path = [
        {owner.name: [rng.choice((-1.0, 0.0, 2.0, NAN)) for _ in range(owner.buckets)] for owner in owners}
        for _ in range(20)
    ]
    results = []
    for order in permutations(owners):
        space = HyperparameterSpace(order)
        steps = run(space, [space.pack(named) for named in path])
        results.append(
            [
                (space.unpack(outer.values), space.unpack(outer.state.steps), outer.converged, outer.state.failures)
                for outer in steps
            ]
        )
    assert all(result == results[0] for result in results)
