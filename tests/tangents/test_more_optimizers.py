"""RMSprop, Adagrad, NAdam, Lion, LAMB and Muon: equal to `torch.optim` or to their papers' algorithms, step by step."""

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
from torch.optim import NAdam, Optimizer, RMSprop
from torch.utils._pytree import tree_flatten, tree_unflatten

from fds_dist.common.flat import FlatLayout
from fds_dist.common.optimizers import BUILT_IN
from fds_dist.tangents.optimizers import INNER_OPTIMIZERS, InnerOptimizer, bound

STEPS = 300
EPS = torch.finfo(torch.float64).eps
Values = dict[str, float]
Parameters = list[Tensor]
Step = Callable[[Parameters, Parameters, Values], Parameters]
"""(parameters, their gradients, values) → parameters after one step of a reference, which keeps its own state."""

LAYOUT = FlatLayout(("wide", "bias", "filters", "tall"), tuple(map(torch.Size, [(3, 5), (3,), (2, 2, 3), (6, 2)])))
"""Matrices wider and taller than square, and what is no matrix."""


def parts(vector: Tensor) -> Parameters:
    return [view.clone() for view in LAYOUT.views(vector).values()]


# ---- references --------------------------------------------------------------------------------------------------


def torch_step(make: Callable[[list[nn.Parameter]], list[Optimizer]]) -> Callable[[Parameters], Step]:
    """The reference of optimizers of `torch.optim`, each on the parameters that it is made with."""

    def start(initial: Parameters) -> Step:
        parameters = [nn.Parameter(part.clone()) for part in initial]
        optimizers = make(parameters)

        def step(before: Parameters, gradients: Parameters, values: Values) -> Parameters:
            for parameter, value, gradient in zip(parameters, before, gradients, strict=True):
                parameter.data.copy_(value)
                parameter.grad = gradient.clone()
            for optimizer in optimizers:
                set_values(optimizer, values)
                optimizer.step()
            return [parameter.detach().clone() for parameter in parameters]

        return step

    return start


def set_values(optimizer: Optimizer, values: Values) -> None:
    (group,) = optimizer.param_groups
    own = {name: value for name, value in values.items() if name in group}
    if isinstance(optimizer, torch.optim.AdamW) and "adamw_lr" in values:
        own["lr"] = values["adamw_lr"]
    betas = {"betas": (values["beta1"], values["beta2"])} if "betas" in group else {}
    group.update(own | betas)


def split_muon(nesterov: bool) -> Callable[[list[nn.Parameter]], list[Optimizer]]:
    """`torch.optim.Muon` on the matrices, AdamW on all others."""

    def make(parameters: list[nn.Parameter]) -> list[Optimizer]:
        matrices = [parameter for parameter in parameters if parameter.dim() == 2]
        others = [parameter for parameter in parameters if parameter.dim() != 2]
        return [torch.optim.Muon(matrices, nesterov=nesterov), torch.optim.AdamW(others)]

    return make


def lion(initial: Parameters) -> Step:
    """Algorithm 2 of arXiv 2302.06675, written from the paper."""
    moments = [torch.zeros_like(part) for part in initial]

    def step(before: Parameters, gradients: Parameters, values: Values) -> Parameters:
        after = []
        for i, (w, g) in enumerate(zip(before, gradients, strict=True)):
            c = values["beta1"] * moments[i] + (1 - values["beta1"]) * g
            after.append(w - values["lr"] * (torch.sign(c) + values["weight_decay"] * w))
            moments[i] = values["beta2"] * moments[i] + (1 - values["beta2"]) * g
        return after

    return step


def lamb(initial: Parameters) -> Step:
    """Algorithm 2 of arXiv 1904.00962 with φ(z) = z, written from the paper."""
    moments = [(torch.zeros_like(part), torch.zeros_like(part)) for part in initial]
    taken = 0

    def step(before: Parameters, gradients: Parameters, values: Values) -> Parameters:
        nonlocal taken
        taken, after = taken + 1, []
        beta1, beta2 = values["beta1"], values["beta2"]
        for i, (w, g) in enumerate(zip(before, gradients, strict=True)):
            first, second = beta1 * moments[i][0] + (1 - beta1) * g, beta2 * moments[i][1] + (1 - beta2) * g * g
            moments[i] = first, second
            ratio = (first / (1 - beta1**taken)) / ((second / (1 - beta2**taken)).sqrt() + values["eps"])
            r = ratio + values["weight_decay"] * w
            after.append(w - values["lr"] * float(w.norm()) / float(r.norm()) * r)
        return after

    return step


CASES: dict[str, tuple[InnerOptimizer, Callable[[Parameters], Step]]] = {
    "rmsprop": (INNER_OPTIMIZERS["rmsprop"](), torch_step(lambda p: [RMSprop(p, momentum=0.5)])),
    "centered": (
        INNER_OPTIMIZERS["rmsprop"](centered=True),
        torch_step(lambda p: [RMSprop(p, momentum=0.5, centered=True)]),
    ),
    "adagrad": (INNER_OPTIMIZERS["adagrad"](), torch_step(lambda p: [torch.optim.Adagrad(p)])),
    "adagrad, 0.1": (
        INNER_OPTIMIZERS["adagrad"](initial_accumulator_value=0.1),
        torch_step(lambda p: [torch.optim.Adagrad(p, initial_accumulator_value=0.1)]),
    ),
    "nadam": (INNER_OPTIMIZERS["nadam"](), torch_step(lambda p: [NAdam(p)])),
    "nadam, decoupled": (
        INNER_OPTIMIZERS["nadam"](decoupled_weight_decay=True),
        torch_step(lambda p: [NAdam(p, decoupled_weight_decay=True)]),
    ),
    "lion": (INNER_OPTIMIZERS["lion"](), lion),
    "lamb": (bound(INNER_OPTIMIZERS["lamb"](), LAYOUT), lamb),
    "muon": (bound(INNER_OPTIMIZERS["muon"](), LAYOUT), torch_step(split_muon(nesterov=True))),
    "muon, plain": (
        bound(INNER_OPTIMIZERS["muon"](nesterov=False), LAYOUT),
        torch_step(split_muon(nesterov=False)),
    ),
}
RANGES = {
    "lr": (1e-3, 0.05), "adamw_lr": (1e-3, 0.05), "momentum": (0.1, 0.95), "weight_decay": (0.0, 0.1),
    "beta1": (0.0, 0.99), "beta2": (0.9, 0.9999), "alpha": (0.5, 0.999), "eps": (1e-8, 1e-6),
    "lr_decay": (0.0, 0.01), "momentum_decay": (1e-3, 1e-2),
}  # fmt: skip


def defaults(optimizer: InnerOptimizer) -> Iterator[Values]:
    while True:
        yield dict(optimizer.defaults)


def changing(optimizer: InnerOptimizer) -> Iterator[Values]:
    """Other values at every step."""
    rng = random.Random(0)
    while True:
        yield {name: rng.uniform(*RANGES[name]) for name in optimizer.defaults}


@pytest.fixture(autouse=True)
def exact_references(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`torch.optim` keeps single numbers, such as NAdam's product, in the default dtype, and Muon iterates in bfloat16.

    In the weights' dtype both compute what their formulas say.
    """
    monkeypatch.setattr(Tensor, "bfloat16", Tensor.clone)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def as_tensors(values: Values) -> dict[str, Tensor]:
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


@pytest.mark.parametrize("setting", [defaults, changing])
@pytest.mark.parametrize("case", CASES)
def test_each_step_equals_the_reference_to_rounding_over_300_steps(
    case: str, setting: Callable[[InnerOptimizer], Iterator[Values]]
) -> None:
    """From the same point, step after step; each keeps a state of its own."""
    optimizer, start = CASES[case]
    weights, gradient = non_quadratic_problem(torch.float64, LAYOUT.size, STEPS)
    state, reference = optimizer.init(weights), start(parts(weights))
    for step, values in enumerate(islice(setting(optimizer), STEPS)):
        before, g = weights, gradient(weights, step)
        ours, state = optimizer.update(before, state, g, as_tensors(values))
        weights = torch.cat([part.flatten() for part in reference(parts(before), parts(g), values)])
        # Some roundings of the weights; and of the step, as Muon's five iterations, each with a slope of 3.4, enlarge
        # those of a singular value near 0 (13 were seen).
        assert (ours - weights).abs().max() <= 100 * EPS * (weights - before).abs().max() + 4 * EPS * before.abs().max()


def test_torchs_muon_differs_by_no_more_than_its_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    optimizer, start = CASES["muon"]
    weights, gradient = non_quadratic_problem(torch.float64, LAYOUT.size, 3)
    state, values = optimizer.init(weights), dict(optimizer.defaults)
    ours, _ = optimizer.update(weights, state, gradient(weights, 0), as_tensors(values))
    theirs = torch.cat(
        [part.flatten() for part in start(parts(weights))(parts(weights), parts(gradient(weights, 0)), values)]
    )
    # bfloat16 has 8 bits: 4e-3 a rounding, through 5 iterations of slope 3.4 at most.
    assert 1e-4 < float((ours - theirs).norm() / (theirs - weights).norm()) < 5e-2


# ---- derivatives -------------------------------------------------------------------------------------------------


def generic_point(optimizer: InnerOptimizer) -> tuple[list[Tensor], Callable[..., list[Tensor]], list[str]]:
    """A point after some steps, the update as a function of a flat list of tensors, and what each of them is."""
    weights, gradient = non_quadratic_problem(torch.float64, LAYOUT.size, 6)
    state = optimizer.init(weights)
    h = as_tensors({name: value or 0.1 for name, value in optimizer.defaults.items()} | {"eps": 0.1})
    h = {name: value for name, value in h.items() if name in optimizer.defaults}
    for step in range(5):
        weights, state = optimizer.update(weights, state, gradient(weights, step), h)
    tensors, structure = tree_flatten((weights, state, gradient(weights, 5), h))

    def update(*tensors: Tensor) -> list[Tensor]:
        return tree_flatten(optimizer.update(*tree_unflatten(list(tensors), structure)))[0]

    names = ["weights", *["state"] * (len(tensors) - 2 - len(h)), "gradient", *h]
    return tensors, update, names


@pytest.mark.parametrize("case", CASES)
def test_the_derivative_by_every_argument_is_the_central_difference(case: str) -> None:
    tensors, update, names = generic_point(CASES[case][0])
    generator = torch.Generator().manual_seed(2)
    for position in range(len(names)):
        directions = [torch.zeros_like(tensor) for tensor in tensors]
        directions[position] = torch.rand(tensors[position].shape, generator=generator) + 0.5
        derivative = jvp(update, tuple(tensors), tuple(directions))[1]
        step = 1e-6
        ahead, behind = (
            update(*(tensor + sign * step * way for tensor, way in zip(tensors, directions, strict=True)))
            for sign in (1, -1)
        )
        for computed, plus, minus in zip(derivative, ahead, behind, strict=True):
            # Third derivatives of up to 1e5 (1 − β₂ = 1e-3) leave 1e5·step²/6 = 2e-8; rounding eps/step = 2e-10.
            torch.testing.assert_close(computed, (plus - minus) / (2 * step), rtol=1e-6, atol=1e-6, msg=names[position])


@pytest.mark.parametrize("case", CASES)
def test_derivatives_under_vmap_are_those_one_at_a_time(case: str) -> None:
    tensors, update, _ = generic_point(CASES[case][0])
    directions = [torch.randn(3, *tensor.shape) for tensor in tensors]

    def push(*direction: Tensor) -> Any:
        return jvp(update, tuple(tensors), direction)[1]

    for row in range(3):
        for together, alone in zip(vmap(push)(*directions), push(*(way[row] for way in directions)), strict=True):
            # Batched operations add in another order: some roundings, which Muon's iterations enlarge.
            torch.testing.assert_close(together[row], alone, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("case", CASES)
def test_derivatives_are_finite_where_gradient_state_and_weights_are_zero(case: str) -> None:
    """√0, a norm of 0 and a matrix of zeros have infinite or no derivatives: dead units, biases that begin at 0."""
    optimizer = CASES[case][0]
    zeros = torch.zeros(LAYOUT.size)
    h = as_tensors(dict(optimizer.defaults))
    tensors, structure = tree_flatten((zeros, optimizer.init(zeros), zeros, h))

    def update(*tensors: Tensor) -> list[Tensor]:
        return tree_flatten(optimizer.update(*tree_unflatten(list(tensors), structure)))[0]

    derivative = jvp(update, tuple(tensors), tuple(map(torch.ones_like, tensors)))[1]
    assert all(bool(part.isfinite().all()) for part in derivative)
    # By the weights alone the step is w ← w·(1 − lr·ξ), or less where the decay goes through a direction's norm.
    only = [torch.ones_like(tensors[0]), *map(torch.zeros_like, tensors[1:])]
    assert (jvp(update, tuple(tensors), tuple(only))[1][0] != 0).all()


def test_lamb_moves_a_parameter_of_norm_zero_by_a_ratio_of_one() -> None:
    """Where ‖w‖ = 0 the step is lr·r, and its derivative by lr is −r, that of a constant ratio."""
    optimizer = CASES["lamb"][0]
    weights = torch.zeros(LAYOUT.size)
    gradient = torch.linspace(0.5, 1, LAYOUT.size)
    h = as_tensors({**optimizer.defaults, "eps": 0.0})
    state = optimizer.init(weights)

    def moved(lr: Tensor) -> Tensor:
        return optimizer.update(weights, state, gradient, {**h, "lr": lr})[0]

    value, derivative = moved(h["lr"]), jvp(moved, (h["lr"],), (torch.ones(()),))[1]
    # On the first step m̂/√ŝ = sign g = 1, up to the roundings of 1 − β.
    torch.testing.assert_close(value, -h["lr"] * torch.ones(LAYOUT.size), rtol=1e-12, atol=0)
    torch.testing.assert_close(derivative, -torch.ones(LAYOUT.size), rtol=1e-12, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_an_update_changes_none_of_its_arguments(case: str) -> None:
    tensors, update, _ = generic_point(CASES[case][0])
    before = [tensor.clone() for tensor in tensors]
    update(*tensors)
    assert all(map(torch.equal, tensors, before))


@pytest.mark.parametrize("case", CASES)
def test_one_value_per_weight_updates_each_parameter_by_its_own(case: str) -> None:
    """Parameter groups: parameters with one value behave like those of a run of their own."""
    optimizer = CASES[case][0]
    weights, gradient = non_quadratic_problem(torch.float64, LAYOUT.size, 10)
    first = torch.cat([torch.full((size,), i % 2 == 0) for i, size in enumerate(LAYOUT.sizes)])
    runs, states = [weights] * 3, [optimizer.init(weights) for _ in range(3)]
    pairs = zip(changing(optimizer), islice(changing(optimizer), 7, None), strict=False)
    for step, pair in enumerate(islice(pairs, 10)):
        one, other = map(as_tensors, pair)
        settings = [{name: torch.where(first, one[name], other[name]) for name in one}, one, other]
        g = gradient(runs[0], step)
        stepped = [optimizer.update(*each, g, h) for *each, h in zip(runs, states, settings, strict=True)]
        runs, states = [new for new, _ in stepped], [state for _, state in stepped]
    # The same operations with a value per weight: some roundings, which Muon's iterations enlarge.
    torch.testing.assert_close(runs[0], torch.where(first, runs[1], runs[2]), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", [name for name, facts in BUILT_IN.items() if facts.torch_class])
def test_defaults_switches_and_state_are_as_the_plain_data_says(name: str) -> None:
    facts, optimizer = BUILT_IN[name], INNER_OPTIMIZERS[name]()
    theirs = getattr(torch.optim, facts.torch_class)([nn.Parameter(torch.zeros(1))]).defaults
    theirs |= dict(zip(("beta1", "beta2"), theirs.get("betas", ()), strict=False))
    assert dict(optimizer.defaults) == {key: theirs[key] for key in optimizer.defaults}
    assert optimizer.switches == {key: theirs[key] for key in facts.switches}
    leaves = tree_flatten(optimizer.init(torch.zeros(7)))[0]
    assert sum(leaf.dim() for leaf in leaves) == facts.vectors
    assert all(math.prod(leaf.shape) in (1, 7) for leaf in leaves)
