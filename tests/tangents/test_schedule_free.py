"""Schedule-free SGD and AdamW against the package schedulefree, step by step, and derivatives against differences."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from slopes import non_quadratic_problem
from torch import Tensor, nn
from torch.func import jvp, vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from fds_dist.common.optimizers import BUILT_IN
from fds_dist.tangents.optimizers import InnerOptimizer, judged, make_inner_optimizer
from fds_dist.tangents.optimizers.plain_schedule_free import PlainScheduleFree
from fds_dist.tangents.optimizers.schedule_free import ScheduleFree
from fds_dist.tangents.step import judged_tangents

SIZE, STEPS = 7, 25
NAMES = ("schedule_free_sgd", "schedule_free_adamw")
SWITCHES: list[dict[str, float]] = [{}, {"r": 1.0, "weight_lr_power": 1.0}, {"weight_lr_power": 0.0}]
RANGES = {
    "lr": (0.01, 0.5), "momentum": (0.5, 0.95), "weight_decay": (0.0, 0.1), "beta1": (0.5, 0.95),
    "beta2": (0.9, 0.999), "eps": (1e-8, 1e-6),
}  # fmt: skip
Values = dict[str, float]


def made(name: str, switches: dict[str, float] | None = None) -> ScheduleFree:
    optimizer = make_inner_optimizer(name, switches or {})
    assert isinstance(optimizer, ScheduleFree)
    return optimizer


def changing(optimizer: InnerOptimizer, seed: int = 0) -> Iterator[Values]:
    """Other values at every step, after two steps with learning rate 0."""
    rng = random.Random(seed)
    for step in range(STEPS):
        values = {name: rng.uniform(*RANGES[name]) for name in optimizer.defaults}
        yield values | {"lr": values["lr"] if step > 1 else 0.0}


def as_tensors(values: Values) -> dict[str, Tensor]:
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


def step_of(theirs: torch.optim.Optimizer, parameter: nn.Parameter, gradient: Tensor, values: Values) -> None:
    (group,) = theirs.param_groups
    own = {name: value for name, value in values.items() if name in group}
    betas = {"betas": (values["beta1"], values["beta2"])} if "betas" in group else {}
    group.update(own | betas)
    parameter.grad = gradient.clone()
    theirs.step()


def references(optimizer: ScheduleFree, start: Tensor, switches: dict[str, float]) -> Iterator[Any]:
    """The plain optimizer, and the package's where it is installed, each with the parameter that it moves."""
    parameter = nn.Parameter(start.clone())
    yield PlainScheduleFree(optimizer, [{"params": [parameter]}]), parameter
    if importlib.util.find_spec("schedulefree"):
        make = getattr(importlib.import_module("schedulefree"), BUILT_IN[optimizer.name].package_class)
        parameter = nn.Parameter(start.clone())
        yield make([parameter], **switches), parameter


@pytest.mark.parametrize("switches", SWITCHES)
@pytest.mark.parametrize("name", NAMES)
def test_each_step_and_its_average_are_the_package_s(name: str, switches: dict[str, float]) -> None:
    optimizer = made(name, switches)
    start, gradient = non_quadratic_problem(torch.float64, SIZE, STEPS)
    for theirs, parameter in references(optimizer, start, switches):
        weights, state = start, optimizer.init(start)
        theirs.train()
        for step, values in enumerate(changing(optimizer)):
            g = gradient(weights, step)
            step_of(theirs, parameter, g, values)
            weights, state = optimizer.update(weights, state, g, as_tensors(values))
            # Roundings of 1e-16 per step, over 25 steps; x divides those of y by an interpolation of at least 0.5.
            torch.testing.assert_close(weights, parameter.detach(), rtol=1e-13, atol=1e-14)
            theirs.eval()
            torch.testing.assert_close(judged(optimizer, weights, state), parameter.detach(), rtol=1e-13, atol=1e-14)
            theirs.train()


def test_the_average_is_that_of_the_weights_that_stepped() -> None:
    """With a constant learning rate x is the plain mean of z over the steps, which is the paper's definition."""
    optimizer = made("schedule_free_sgd")
    start, gradient = non_quadratic_problem(torch.float64, SIZE, STEPS)
    weights, state, passed = start, optimizer.init(start), []
    h = as_tensors({"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01})
    for step in range(STEPS):
        weights, state = optimizer.update(weights, state, gradient(weights, step), h)
        passed.append(state.z)
    mean = torch.stack(passed).mean(0)
    torch.testing.assert_close(judged(optimizer, weights, state), mean, rtol=1e-13, atol=1e-14)  # rounding


def test_the_plain_optimizer_gives_the_trained_weights_back() -> None:
    parameter = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = PlainScheduleFree(made("schedule_free_sgd"), [{"params": [parameter]}])
    optimizer.eval()
    assert parameter.tolist() == [1.0] * 3  # before the first step both are the start
    for _ in range(2):
        step_of(optimizer, parameter, torch.linspace(0.3, 1, 3).double(), {"lr": 0.1, "momentum": 0.7})
    trained = parameter.detach().clone()
    optimizer.eval()
    optimizer.eval()
    assert not torch.equal(parameter, trained)
    with pytest.raises(RuntimeError, match=r"call optimizer.train\(\) before a step"):
        optimizer.step()
    optimizer.train()
    assert torch.equal(parameter, trained)


@pytest.mark.parametrize("name", NAMES)
def test_defaults_and_switches_are_the_package_s(name: str) -> None:
    package = pytest.importorskip("schedulefree")
    facts, optimizer = BUILT_IN[name], made(name)
    theirs = getattr(package, facts.package_class)([nn.Parameter(torch.zeros(1))]).defaults
    theirs |= dict(zip(("beta1", "beta2"), theirs.get("betas", ()), strict=False))
    assert dict(optimizer.defaults) == {key: theirs[key] for key in optimizer.defaults}
    assert optimizer.switches == {key: theirs[key] for key in facts.switches}
    assert sum(leaf.dim() for leaf in tree_flatten(optimizer.init(torch.zeros(7)))[0]) == facts.vectors


# ---- derivatives -------------------------------------------------------------------------------------------------


def place(optimizer: ScheduleFree) -> tuple[list[Tensor], Any]:
    """A point after some steps, as a flat list of tensors, and the update and what is judged after it."""
    weights, gradient = non_quadratic_problem(torch.float64, SIZE, STEPS)
    state = optimizer.init(weights)
    values = {name: value or 0.1 for name, value in optimizer.defaults.items()}
    h = as_tensors(values | {"lr": 0.1} | ({"eps": 0.1, "beta2": 0.9} if "eps" in values else {}))
    for step in range(5):
        weights, state = optimizer.update(weights, state, gradient(weights, step), h)
    h["lr"] = h["lr"] * 1.1  # away from the kink of the highest one so far
    tensors, structure = tree_flatten((weights, state, gradient(weights, 5), h))

    def stepped(*tensors: Tensor) -> list[Tensor]:
        weights, state = optimizer.update(*tree_unflatten(list(tensors), structure))
        return [*tree_flatten((weights, state))[0], judged(optimizer, weights, state)]

    return tensors, stepped


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("switches", SWITCHES)
def test_the_derivative_by_every_argument_is_the_central_difference(name: str, switches: dict[str, float]) -> None:
    tensors, stepped = place(made(name, switches))
    random_numbers = torch.Generator().manual_seed(2)
    rows = [torch.rand((3, *tensor.shape), generator=random_numbers).double() + 0.5 for tensor in tensors]
    together = vmap(lambda *direction: jvp(stepped, tuple(tensors), direction)[1])(*rows)
    for row in range(3):
        direction = [each[row] for each in rows]
        derivative = jvp(stepped, tuple(tensors), tuple(direction))[1]
        ahead, behind = (
            stepped(*(tensor + sign * 1e-6 * way for tensor, way in zip(tensors, direction, strict=True)))
            for sign in (1, -1)
        )
        for alone, batched, plus, minus in zip(derivative, together, ahead, behind, strict=True):
            # Rounding 1e-16/1e-6, and third derivatives of up to 1e5 (roots of small moments) times 1e-12/6.
            torch.testing.assert_close(alone, (plus - minus) / 2e-6, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(alone, batched[row], rtol=1e-12, atol=1e-12)  # roundings


@pytest.mark.parametrize("name", NAMES)
def test_derivatives_are_finite_at_the_start_and_at_a_learning_rate_of_0(name: str) -> None:
    for switches in (*SWITCHES, {"weight_lr_power": 0.5}):
        optimizer = made(name, switches)
        zeros = torch.zeros(SIZE, dtype=torch.float64)
        for lr in (0.0, 0.1):
            h = as_tensors({**optimizer.defaults, "lr": lr})
            tensors, structure = tree_flatten((zeros, optimizer.init(zeros), zeros, h))

            def stepped(*tensors: Tensor, structure: Any = structure, rule: ScheduleFree = optimizer) -> list[Tensor]:
                weights, state = rule.update(*tree_unflatten(list(tensors), structure))
                return [*tree_flatten((weights, state))[0], judged(rule, weights, state)]

            derivative = jvp(stepped, tuple(tensors), tuple(map(torch.ones_like, tensors)))[1]
            assert all(bool(part.isfinite().all()) for part in derivative)


def test_a_tie_of_learning_rates_has_the_derivative_of_the_central_difference() -> None:
    """One value over the whole run ties with itself at every step, and moves all of them."""
    optimizer = made("schedule_free_sgd")
    start, gradient = non_quadratic_problem(torch.float64, SIZE, STEPS)

    def average(lr: Tensor) -> Tensor:
        weights, state = start, optimizer.init(start)
        fixed = as_tensors({"momentum": 0.9, "weight_decay": 0.0})
        for step in range(8):
            weights, state = optimizer.update(weights, state, gradient(weights, step), {**fixed, "lr": lr})
        return judged(optimizer, weights, state)

    lr = torch.tensor(0.1, dtype=torch.float64)
    derivative = jvp(average, (lr,), (torch.ones_like(lr),))[1]
    difference = (average(lr + 1e-6) - average(lr - 1e-6)) / 2e-6
    torch.testing.assert_close(derivative, difference, rtol=1e-7, atol=1e-8)  # rounding 1e-16/1e-6, some curvature


def test_tangents_of_what_is_judged_do_not_depend_on_how_many_there_are() -> None:
    optimizer = made("schedule_free_sgd")
    start, gradient = non_quadratic_problem(torch.float64, SIZE, STEPS)
    h = as_tensors({"lr": 0.1, "momentum": 0.8, "weight_decay": 0.1})
    primals = optimizer.update(start, optimizer.init(start), gradient(start, 0), h)
    leaves, structure = tree_flatten(primals)
    rows: Any = tree_unflatten([torch.randn(4, *leaf.shape, dtype=torch.float64) for leaf in leaves], structure)
    few: Any = tree_unflatten([leaf[:2] for leaf in tree_flatten(rows)[0]], structure)
    alone = judged_tangents(optimizer, primals, rows, vectorize=False)
    assert torch.equal(alone[:2], judged_tangents(optimizer, primals, few, vectorize=False))
    torch.testing.assert_close(judged_tangents(optimizer, primals, rows, vectorize=True), alone, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_one_value_per_weight_updates_each_parameter_by_its_own(name: str) -> None:
    """Parameter groups: parameters with one value behave like those of a run of their own."""
    optimizer = made(name)
    weights, gradient = non_quadratic_problem(torch.float64, SIZE, STEPS)
    first, rules = torch.arange(SIZE) < 3, [optimizer.for_groups(), optimizer, optimizer]
    runs, states = [weights] * 3, [rule.init(weights) for rule in rules]
    for step, pair in enumerate(islice(zip(changing(optimizer), changing(optimizer, 1), strict=True), 10)):
        one, other = map(as_tensors, pair)
        settings = [{name: torch.where(first, one[name], other[name]) for name in one}, one, other]
        settings[0] |= {"beta2": one["beta2"]} if "beta2" in one else {}  # some values are common
        other |= {"beta2": one["beta2"]} if "beta2" in one else {}
        stepped = [
            rule.update(run, state, gradient(runs[0], step), h)
            for rule, run, state, h in zip(rules, runs, states, settings, strict=True)
        ]
        runs, states = [run for run, _ in stepped], [state for _, state in stepped]
    averages = [judged(*each) for each in zip(rules, runs, states, strict=True)]
    # The same operations with a value per weight: some roundings.
    torch.testing.assert_close(averages[0], torch.where(first, averages[1], averages[2]), rtol=1e-12, atol=1e-13)
