"""Inner optimizers: equal to `torch.optim` step by step, and their forward-mode derivatives to finite differences."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from slopes import non_quadratic_problem
from torch import Tensor, nn
from torch.func import jvp, vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from fds_dist.tangents.optimizers import INNER_OPTIMIZERS, AdamState, InnerOptimizer, safe_sqrt

STEPS, SGD_STEPS = 300, 1000
D = 37  # no multiple of a vector register's length, so that the loops' remainders are tested too
EPS = torch.finfo(torch.float64).eps
OPTIMIZERS: dict[str, InnerOptimizer] = {
    "sgd": INNER_OPTIMIZERS["sgd"](),
    "nesterov": INNER_OPTIMIZERS["sgd"](nesterov=True),
    "adam": INNER_OPTIMIZERS["adam"](),
    "adamw": INNER_OPTIMIZERS["adamw"](),
}
Values = dict[str, float]


def reference(name: str, weights: Tensor, foreach: bool = False) -> torch.optim.Optimizer:
    """The optimizer of `torch.optim` on one parameter. Momentum must not be 0 when it is made with Nesterov."""
    parameter = [nn.Parameter(weights.clone())]
    if name in ("sgd", "nesterov"):
        return torch.optim.SGD(parameter, lr=1.0, momentum=0.5, nesterov=name == "nesterov", foreach=foreach)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name](parameter, foreach=foreach)


def reference_step(optimizer: torch.optim.Optimizer, gradient: Tensor, values: Values) -> Tensor:
    """The parameter after one step with `values` set by hand."""
    (group,) = optimizer.param_groups
    betas = {"betas": (values["beta1"], values["beta2"])} if "beta1" in values else {}
    group.update({name: value for name, value in values.items() if not name.startswith("beta")} | betas)
    group["params"][0].grad = gradient
    optimizer.step()
    return group["params"][0].detach()


def as_tensors(values: Values, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return {name: torch.tensor(value, dtype=dtype) for name, value in values.items()}


def constant(**values: float) -> Iterator[Values]:
    while True:
        yield values


def changing(names: tuple[str, ...]) -> Iterator[Values]:
    """Other values at every step."""
    low_high = {
        "lr": (1e-3, 0.1), "momentum": (0.1, 0.99), "weight_decay": (0.0, 0.1),
        "beta1": (0.0, 0.99), "beta2": (0.9, 0.9999), "eps": (1e-9, 1e-6),
    }  # fmt: skip
    rng = random.Random(0)
    while True:
        yield {name: rng.uniform(*low_high[name]) for name in names}


SGD_NAMES = ("lr", "momentum", "weight_decay")
ADAM_NAMES = ("lr", "beta1", "beta2", "eps", "weight_decay")
SGD_SETTINGS: dict[str, Callable[[], Iterator[Values]]] = {
    "plain": lambda: constant(lr=0.1, momentum=0.0, weight_decay=0.0),
    "momentum": lambda: constant(lr=0.05, momentum=0.9, weight_decay=0.0),
    "weight_decay": lambda: constant(lr=0.1, momentum=0.0, weight_decay=0.01),
    "all": lambda: constant(lr=0.05, momentum=0.9, weight_decay=5e-4),
    "changing": lambda: changing(SGD_NAMES),
}


@pytest.mark.parametrize(("dtype", "foreach"), [(torch.float64, False), (torch.float64, True), (torch.float32, False)])
@pytest.mark.parametrize("setting", SGD_SETTINGS)
@pytest.mark.parametrize("name", ["sgd", "nesterov"])
def test_sgd_equals_torch_bit_for_bit_over_1000_steps(
    name: str, setting: str, dtype: torch.dtype, foreach: bool
) -> None:
    weights, gradient = non_quadratic_problem(dtype, D, SGD_STEPS)
    optimizer, theirs, their_weights = OPTIMIZERS[name], reference(name, weights, foreach), weights
    state = optimizer.init(weights)
    for step, values in enumerate(islice(SGD_SETTINGS[setting](), SGD_STEPS)):
        their_weights = reference_step(theirs, gradient(their_weights, step), values).clone()
        weights, state = optimizer.update(weights, state, gradient(weights, step), as_tensors(values, dtype))
        assert torch.equal(weights, their_weights), f"step {step}"


ADAM_SETTINGS: dict[str, Callable[[], Iterator[Values]]] = {
    "defaults": lambda: constant(lr=1e-2, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0),
    "weight_decay": lambda: constant(lr=1e-2, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.05),
    "no memory": lambda: constant(lr=1e-2, beta1=0.0, beta2=0.0, eps=1e-2, weight_decay=0.0),
    "changing": lambda: changing(ADAM_NAMES),
}


@pytest.mark.parametrize("setting", ADAM_SETTINGS)
@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_each_adam_step_equals_torch_to_rounding(name: str, setting: str) -> None:
    """From the same point, step after step, with the same operations in the same order but for one number.

    torch.optim takes the root of the bias correction as Python's `x ** 0.5`. In 1 step of 20 that is another float
    than the tensor's root, one rounding off; the step takes this over through one sum and one division, so 4 roundings
    of the step are enough. The other steps come out bit for bit.
    """
    weights, gradient = non_quadratic_problem(torch.float64, D, STEPS)
    optimizer, theirs = OPTIMIZERS[name], reference(name, weights)
    state, equal = optimizer.init(weights), 0
    for step, values in enumerate(islice(ADAM_SETTINGS[setting](), STEPS)):
        before, g = weights, gradient(weights, step)
        ours, state = optimizer.update(before, state, g, as_tensors(values))
        weights = reference_step(theirs, g, values).clone()
        assert bool(((ours - weights).abs() <= 4 * EPS * (before.abs() + (weights - before).abs())).all()), step
        equal += torch.equal(ours, weights)
    assert equal > 0.8 * STEPS


@pytest.mark.parametrize("setting", ADAM_SETTINGS)
@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_an_adam_run_equals_torchs_over_300_steps(name: str, setting: str) -> None:
    weights, gradient = non_quadratic_problem(torch.float64, D, STEPS)
    optimizer, theirs, their_weights = OPTIMIZERS[name], reference(name, weights), weights
    state, worst = optimizer.init(weights), 0.0
    for step, values in enumerate(islice(ADAM_SETTINGS[setting](), STEPS)):
        their_weights = reference_step(theirs, gradient(their_weights, step), values).clone()
        weights, state = optimizer.update(weights, state, gradient(weights, step), as_tensors(values))
        worst = max(worst, (weights - their_weights).abs().max().item())
    # Up to 4 roundings a step of weights of size 1, 4e-16 each step, where the run does not amplify them.
    assert worst < 1e-15 * STEPS


def random_point(name: str, shape: tuple[int, ...]) -> tuple[list[Tensor], Callable[..., list[Tensor]], list[str]]:
    """A generic point (after a few steps) of an update as a function of a flat list of tensors, with their names."""
    optimizer = OPTIMIZERS[name]
    generator = torch.Generator().manual_seed(1)

    def uniform(low: float, high: float, *size: int) -> Tensor:
        return low + (high - low) * torch.rand(size, generator=generator, dtype=torch.float64)

    weights, gradient = uniform(-1, 1, D), uniform(0.5, 1, D) * (-1.0) ** torch.arange(D)
    state = optimizer.init(weights)
    if isinstance(state, AdamState):
        state = AdamState(uniform(-1, 1, D), uniform(0.5, 1, D), torch.tensor(3.0, dtype=torch.float64))
    else:
        state = type(state)(uniform(-1, 1, D))
    h = {hyperparameter: uniform(0.2, 0.8, *shape) for hyperparameter in optimizer.defaults}
    inputs, structure = tree_flatten((weights, state, gradient, h))

    def update(*tensors: Tensor) -> list[Tensor]:
        weights, state, gradient, h = tree_unflatten(tensors, structure)
        return tree_flatten(optimizer.update(weights, state, gradient, h))[0]

    return inputs, update, ["weights", *state._fields, "gradient", *h]


ARGUMENTS = [
    (name, argument)
    for name, arguments in (
        ("sgd", ("weights", "velocity", "gradient", *SGD_NAMES)),
        ("nesterov", ("weights", "velocity", "gradient", *SGD_NAMES)),
        ("adam", ("weights", "first_moment", "second_moment", "steps", "gradient", *ADAM_NAMES)),
        ("adamw", ("weights", "first_moment", "second_moment", "steps", "gradient", *ADAM_NAMES)),
    )
    for argument in arguments
]


@pytest.mark.parametrize("shape", [(), (D,)], ids=["one value", "one per weight"])
@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_the_derivative_by_every_argument_is_the_central_difference(
    name: str, argument: str, shape: tuple[int, ...]
) -> None:
    inputs, update, names = random_point(name, shape)
    position = names.index(argument)
    directions = [torch.zeros_like(tensor) for tensor in inputs]
    directions[position] = torch.rand_like(inputs[position]) + 0.5
    derivative = jvp(update, tuple(inputs), tuple(directions))[1]

    step = 1e-5
    ahead, behind = (
        update(*(tensor + sign * step * direction for tensor, direction in zip(inputs, directions, strict=True)))
        for sign in (1, -1)
    )
    for computed, plus, minus in zip(derivative, ahead, behind, strict=True):
        # Values and third derivatives are of size 1 to 100: truncation up to 100·step²/6 = 2e-9, rounding
        # eps/step = 2e-11.
        torch.testing.assert_close(computed, (plus - minus) / (2 * step), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("shape", [(), (D,)], ids=["one value", "one per weight"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_derivatives_under_vmap_are_those_one_at_a_time(name: str, shape: tuple[int, ...]) -> None:
    inputs, update, _ = random_point(name, shape)
    directions = [torch.randn(4, *tensor.shape, dtype=torch.float64) for tensor in inputs]

    def push(*direction: Tensor) -> Any:
        return jvp(update, tuple(inputs), direction)[1]

    batched = vmap(push)(*directions)
    for row in range(4):
        single = push(*(direction[row] for direction in directions))
        for together, alone in zip(batched, single, strict=True):
            # A batched operation may fuse a product and a sum where a single one does not: some roundings.
            torch.testing.assert_close(together[row], alone, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_no_nan_where_the_second_moment_is_zero(name: str) -> None:
    """Weights whose gradient is 0, as behind a dead ReLU: √s has an infinite derivative there, times a zero."""
    optimizer = OPTIMIZERS[name]
    weights = torch.ones(2, dtype=torch.float64)
    gradient = torch.tensor([0.0, 1.0], dtype=torch.float64)
    state = optimizer.init(weights)
    h = as_tensors({"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-3, "weight_decay": 0.0})
    inputs, structure = tree_flatten((weights, state, gradient, h))

    def update(*tensors: Tensor) -> list[Tensor]:
        return tree_flatten(optimizer.update(*tree_unflatten(tensors, structure)))[0]

    directions = [torch.ones_like(tensor) for tensor in inputs]
    assert all(part.isfinite().all() for part in jvp(update, tuple(inputs), tuple(directions))[1])

    # Along the gradient alone: w − α·m̂/ε to first order at s = 0, with m̂ = g on the first step.
    only_gradient = [torch.zeros_like(tensor) for tensor in inputs]
    only_gradient[4] = torch.ones(2, dtype=torch.float64)
    moved = jvp(update, tuple(inputs), tuple(only_gradient))[1][0]
    assert moved[0].item() == pytest.approx(-0.1 / 1e-3, rel=1e-12)  # a handful of roundings


@pytest.mark.parametrize("beta", ["beta1", "beta2"])
@pytest.mark.parametrize("steps", [0.0, 1.0, 5.0])
def test_derivatives_by_a_beta_of_zero_are_right(beta: str, steps: float) -> None:
    """Learned betas may begin at 0: βᵗ there has derivative 1 at t = 1 and 0 after, and no NaN by its logarithm."""
    inputs, update, names = random_point("adam", ())
    inputs[names.index("steps")] = torch.tensor(steps, dtype=torch.float64)
    position = names.index(beta)
    inputs[position] = torch.zeros((), dtype=torch.float64)
    directions = [torch.zeros_like(tensor) for tensor in inputs]
    directions[position] = torch.ones((), dtype=torch.float64)
    derivative = jvp(update, tuple(inputs), tuple(directions))[1]
    ahead, behind = (
        update(*inputs[:position], torch.tensor(step, dtype=torch.float64), *inputs[position + 1 :])
        for step in (1e-5, -1e-5)
    )
    for computed, plus, minus in zip(derivative, ahead, behind, strict=True):
        # As above: third derivatives of size 100 at most.
        torch.testing.assert_close(computed, (plus - minus) / 2e-5, rtol=1e-8, atol=1e-8)


def test_safe_sqrt() -> None:
    x = torch.tensor([0.0, 1e-300, 4.0], dtype=torch.float64)
    derivative = jvp(safe_sqrt, (x,), (torch.ones_like(x),))[1]
    assert torch.equal(safe_sqrt(x), x.sqrt())
    assert derivative.tolist() == [0.0, 0.5 / math.sqrt(1e-300), 0.25]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_value_per_weight_updates_each_weight_by_its_own(name: str) -> None:
    """Parameter groups: the two halves of the vector behave like two runs of their own."""
    optimizer = OPTIMIZERS[name]
    weights, gradient = non_quadratic_problem(torch.float64, D, STEPS)
    names = tuple(optimizer.defaults)
    half = torch.arange(D) < D // 2
    runs = [weights, weights, weights]
    states = [optimizer.init(weights) for _ in runs]
    pairs = zip(changing(names), islice(changing(names), 7, None), strict=False)
    for step, (first, second) in enumerate(islice(pairs, 20)):
        g = gradient(runs[0], step)
        settings = [as_tensors(first), as_tensors(second)]
        settings.insert(0, {name: torch.where(half, *(values[name] for values in settings)) for name in names})
        stepped = [optimizer.update(runs[i], states[i], g, settings[i]) for i in range(3)]
        runs, states = [new for new, _ in stepped], [state for _, state in stepped]
    # The same elementwise operations; a value per weight may take another loop, which fuses or not: some roundings.
    torch.testing.assert_close(runs[0], torch.where(half, runs[1], runs[2]), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_update_changes_none_of_its_arguments(name: str) -> None:
    inputs, update, _ = random_point(name, ())
    before = [tensor.clone() for tensor in inputs]
    update(*inputs)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(inputs, before, strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_defaults_are_those_of_torch(name: str) -> None:
    optimizer = OPTIMIZERS[name]
    parameter = [nn.Parameter(torch.zeros(1))]
    torch_class = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer.name]
    theirs = torch_class(parameter).defaults
    theirs = theirs | dict(zip(("beta1", "beta2"), theirs.get("betas", ()), strict=False))
    assert dict(optimizer.defaults) == {name: theirs[name] for name in optimizer.defaults}
    assert all(theirs[name] in (value, not value) for name, value in optimizer.switches.items())
