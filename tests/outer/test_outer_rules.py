"""Outer optimizers besides the sign rule: their published updates, their scales, and the retreat."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import asdict

import pytest
import torch

from fds_dist.common.records import from_values
from fds_dist.outer.rules import AdamRule, GradientRule, OuterRule, OuterState, SignRule
from fds_dist.schedule.space import Hyperparameter, HyperparameterSpace

RULES = [SignRule(), SignRule(growth=1.2), GradientRule(momentum=0.9), AdamRule(beta1=0.5)]


def space(scale: str = "linear", name: str = "lr", init: float = 1.0, step: float = 0.1) -> HyperparameterSpace:
    return HyperparameterSpace((Hyperparameter(name, init, step, scale=scale),))


def path(rule: OuterRule, where: HyperparameterSpace, slopes: Sequence[float]) -> list[float]:
    values, state, found = where.initial(), rule.init(where), []
    for slope in slopes:
        step = rule.update(where, values, [slope], state)
        values, state = step.values, step.state
        found.append(values[0])
    return found


def torch_path(optimizer_of, slopes: Sequence[float], decay: float) -> list[float]:
    """The path of a `torch.optim` optimizer whose learning rate decays after each step."""
    weight = torch.nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
    optimizer, found = optimizer_of([weight]), []
    for slope in slopes:
        weight.grad = torch.tensor(slope, dtype=torch.float64)
        optimizer.step()
        optimizer.param_groups[0]["lr"] *= decay
        found.append(weight.item())
    return found


SLOPES = [random.Random(1).uniform(-2, 2) for _ in range(12)]


def test_gradient_descent_with_momentum_is_torchs() -> None:
    expected = torch_path(lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.7), SLOPES, 0.8)
    # The same operations in float64: rounding only.
    assert path(GradientRule(decay=0.8, momentum=0.7), space(), SLOPES) == pytest.approx(expected, rel=1e-13)


def test_adam_is_torchs() -> None:
    expected = torch_path(lambda weights: torch.optim.Adam(weights, lr=0.1, betas=(0.5, 0.9), eps=1e-12), SLOPES, 0.8)
    # The same formula in another order, in float64: rounding only.
    assert path(AdamRule(decay=0.8, beta1=0.5, beta2=0.9), space(), SLOPES) == pytest.approx(expected, rel=1e-12)


def test_rprop_grows_where_the_sign_stays_and_shrinks_where_it_flips() -> None:
    found = path(SignRule(growth=1.2), space(), [-1, -1, 1, 1])
    steps = [0.1, 0.12, 0.06, 0.072]
    assert found == pytest.approx([1 + 0.1, 1 + 0.22, 1 + 0.22 - steps[2], 1 + 0.22 - steps[2] - steps[3]], rel=1e-14)


def test_on_a_log_scale_the_move_is_along_the_logarithm() -> None:
    # d/d log x = x · d/dx: at x = 2 a slope of 3 counts as 6.
    where = space("log", init=2.0, step=0.1)
    assert path(GradientRule(), where, [3.0]) == pytest.approx([2.0 * math.exp(-0.6)], rel=1e-14)
    momentum = space("log", "momentum", init=0.9, step=0.1)
    # m = 1 − exp(u): dm/du = −(1 − m), so a negative slope in m lowers u and raises m.
    assert path(GradientRule(), momentum, [-5.0]) == pytest.approx([1 - 0.1 * math.exp(-0.05)], rel=1e-14)


@pytest.mark.parametrize("rule", RULES)
def test_hypergradients_that_are_not_finite_keep_the_value_and_halve_the_step(rule: OuterRule) -> None:
    where = space()
    first = rule.update(where, where.initial(), [1.0], rule.init(where))
    for bad in (math.nan, math.inf, -math.inf):
        step = rule.update(where, first.values, [bad], first.state)
        assert step.values == first.values
        assert step.state.steps[0] == first.state.steps[0] * 0.5
        assert step.non_finite == (0,)
        assert not step.converged


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("slope", [0.0, 5e-324, 1.7e308, -1.7e308])
def test_extreme_hypergradients_never_make_a_value_that_is_not_finite(rule: OuterRule, slope: float) -> None:
    where = HyperparameterSpace((Hyperparameter("lr", 1.0, 0.1, bounds=(0.0, 10.0)),))
    values, state = where.initial(), rule.init(where)
    for _ in range(5):
        step = rule.update(where, values, [slope], state)
        values, state = step.values, step.state
        assert 0.0 <= values[0] <= 10.0


@pytest.mark.parametrize("rule", RULES)
def test_the_state_survives_a_trip_through_json(rule: OuterRule) -> None:
    where = space()
    state = rule.update(where, where.initial(), [0.3], rule.init(where)).state
    assert from_values(OuterState, asdict(state)) == state


@pytest.mark.parametrize("rule", RULES)
def test_a_retreat_goes_back_with_half_the_steps(rule: OuterRule) -> None:
    where = space()
    state = rule.update(where, where.initial(), [0.3], rule.init(where)).state
    step = rule.retreat([0.7], [2.0], state)
    assert step.values == [0.7]
    assert step.state.failures == 0
    assert rule.retreat([0.7], [math.nan], state).state.failures == 1
    assert step.state.steps == (state.steps[0] * 0.5,)
    assert not step.converged
