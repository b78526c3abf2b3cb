"""Hypergradients through each inner optimizer against reverse mode through the unrolled run, in float64, and on ranks.

The references are written out parameter by parameter and share no code with the package's optimizers. As a program it
is what each of two ranks computes: `… FOLDER`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import start_ranks
from problems import CPU, ONE_RANK, Buckets, TensorTask, flat, image_task, make_problem, mlp, relative_error
from selection import slow_unless, wanted
from torch import Tensor
from torch.func import functional_call

from fds_dist.distributed.environment import read_environment
from fds_dist.distributed.mesh import MeshShape, Ranks
from fds_dist.inner.estimators import ESTIMATORS, estimate_forward
from fds_dist.inner.run import InnerRun
from fds_dist.tangents.optimizers import INNER_OPTIMIZERS, InnerOptimizer, needs_layout

HORIZON = 8
H = Mapping[str, Tensor]
Rule = Callable[[Tensor, dict[str, Any], Tensor, H, int], Tensor]
"""(w, its state, g, h, t from 1) → new w; the state is changed."""


# ---- references --------------------------------------------------------------------------------------------------


def root(x: Tensor) -> Tensor:
    """√x, whose derivative at 0 autograd takes for infinite; a second moment of 0 has none here."""
    return torch.where(x > 0, x.clamp(min=1e-300).sqrt(), torch.zeros_like(x))


def rmsprop(w: Tensor, s: dict[str, Any], g: Tensor, h: H, t: int) -> Tensor:
    g = g + h["weight_decay"] * w
    s["second"] = h["alpha"] * s.get("second", 0.0) + (1 - h["alpha"]) * g**2
    s["velocity"] = h["momentum"] * s.get("velocity", 0.0) + g / (root(s["second"]) + h["eps"])
    return w - h["lr"] * s["velocity"]


def centered(w: Tensor, s: dict[str, Any], g: Tensor, h: H, t: int) -> Tensor:
    g = g + h["weight_decay"] * w
    s["second"] = h["alpha"] * s.get("second", 0.0) + (1 - h["alpha"]) * g**2
    s["first"] = h["alpha"] * s.get("first", 0.0) + (1 - h["alpha"]) * g
    s["velocity"] = h["momentum"] * s.get("velocity", 0.0) + g / (root(s["second"] - s["first"] ** 2) + h["eps"])
    return w - h["lr"] * s["velocity"]


def adagrad(w: Tensor, s: dict[str, Any], g: Tensor, h: H, t: int) -> Tensor:
    g = g + h["weight_decay"] * w
    s["sum"] = s.get("sum", 0.0) + g**2
    return w - h["lr"] / (1 + (t - 1) * h["lr_decay"]) * g / (root(s["sum"]) + h["eps"])


def moments(s: dict[str, Any], g: Tensor, h: H, t: int) -> tuple[Tensor, Tensor]:
    """m and √(s / (1 − β₂ᵗ)) + ε."""
    s["first"] = h["beta1"] * s.get("first", 0.0) + (1 - h["beta1"]) * g
    s["second"] = h["beta2"] * s.get("second", 0.0) + (1 - h["beta2"]) * g**2
    return s["first"], root(s["second"]) / (1 - h["beta2"] ** t).sqrt() + h["eps"]


def nadam(w: Tensor, s: dict[str, Any], g: Tensor, h: H, t: int) -> Tensor:
    first, scale = moments(s, g := g + h["weight_decay"] * w, h, t)
    mu, following = (h["beta1"] * (1 - 0.5 * 0.96 ** (step * h["momentum_decay"])) for step in (t, t + 1))
    s["product"] = s.get("product", 1.0) * mu
    ahead = following * first / (1 - s["product"] * following)
    return w - h["lr"] * ((1 - mu) * g / (1 - s["product"]) + ahead) / scale


def lion(w: Tensor, s: dict[str, Any], g: Tensor, h: H, t: int) -> Tensor:
    before = s.get("first", torch.zeros_like(g))
    s["first"] = h["beta2"] * before + (1 - h["beta2"]) * g
    return w - h["lr"] * ((h["beta1"] * before + (1 - h["beta1"]) * g).sign() + h["weight_decay"] * w)


def lamb(w: Tensor, s: dict[str, Any], g: Tensor, h: H, t: int) -> Tensor:
    first, scale = moments(s, g, h, t)
    r = first / (1 - h["beta1"] ** t) / scale + h["weight_decay"] * w
    return w - h["lr"] * w.pow(2).sum().sqrt() / r.pow(2).sum().sqrt() * r


def muon(w: Tensor, s: dict[str, Any], g: Tensor, h: H, t: int) -> Tensor:
    if w.dim() != 2:
        first, scale = moments(s, g, h, t)
        step = first / (1 - h["beta1"] ** t) / scale
        return w - h["adamw_lr"] * (step + h["weight_decay"] * w)
    s["first"] = h["momentum"] * s.get("first", 0.0) + (1 - h["momentum"]) * g
    x = (1 - h["momentum"]) * g + h["momentum"] * s["first"]
    x = x / x.pow(2).sum().sqrt()
    for _ in range(5):
        a = x @ x.mT if x.shape[0] <= x.shape[1] else x.mT @ x
        polynomial = -4.7750 * a + 2.0315 * a @ a
        x = 3.4445 * x + (polynomial @ x if x.shape[0] <= x.shape[1] else x @ polynomial)
    return w - h["lr"] * (max(1, w.shape[0] / w.shape[1]) ** 0.5 * x + h["weight_decay"] * w)


def schedule_free(w: Tensor, s: dict[str, Any], g: Tensor, h: H, t: int) -> Tensor:
    """The three sequences of arXiv 2405.15682; w is y, and "judged" x."""
    beta = h["beta1"] if "beta1" in h else h["momentum"]
    z = s.get("z", w)
    x = (w - (1 - beta) * z) / beta
    if "beta2" in h:
        s["second"] = h["beta2"] * s.get("second", 0.0) + (1 - h["beta2"]) * g**2
        g = g / (root(s["second"] / (1 - h["beta2"] ** t)) + h["eps"])
    s["highest"] = max(h["lr"], s.get("highest", h["lr"]), key=Tensor.item)
    s["total"] = s.get("total", 0.0) + s["highest"] ** 2
    s["z"] = z - h["lr"] * (g + h["weight_decay"] * w)
    s["judged"] = x + s["highest"] ** 2 / s["total"] * (s["z"] - x)
    return (1 - beta) * s["z"] + beta * s["judged"]


MOMENTS: Buckets = {"beta1": [0.8, 0.9], "beta2": [0.95], "eps": [1e-2], "weight_decay": [0.1, 0.05]}
RMS: Buckets = {"lr": [0.02, 0.01], "alpha": [0.9, 0.8], "eps": [0.01], "momentum": [0.5], "weight_decay": [0.1]}
FREE: Buckets = {"lr": [0.2, 0.3, 0.1], "momentum": [0.8, 0.9], "weight_decay": [0.1, 0.05]}
CASES: dict[str, tuple[InnerOptimizer, Rule, Buckets]] = {
    "rmsprop": (INNER_OPTIMIZERS["rmsprop"](), rmsprop, RMS),
    "centered": (INNER_OPTIMIZERS["rmsprop"](centered=True), centered, RMS),
    "adagrad": (
        INNER_OPTIMIZERS["adagrad"](),
        adagrad,
        {"lr": [0.1, 0.2], "lr_decay": [0.1, 0.05], "eps": [0.01], "weight_decay": [0.1]},
    ),
    "nadam": (INNER_OPTIMIZERS["nadam"](), nadam, {"lr": [0.02, 0.01], **MOMENTS, "momentum_decay": [0.1]}),
    "lion": (
        INNER_OPTIMIZERS["lion"](),
        lion,
        {"lr": [0.02, 0.01], "beta1": [0.9], "beta2": [0.95], "weight_decay": [0.1, 0.05]},
    ),
    "lamb": (INNER_OPTIMIZERS["lamb"](), lamb, {"lr": [0.02, 0.01], **MOMENTS}),
    "muon": (
        INNER_OPTIMIZERS["muon"](),
        muon,
        {"lr": [0.02, 0.01], "momentum": [0.5, 0.9], "adamw_lr": [0.02], **MOMENTS},
    ),
    "schedule_free_sgd": (INNER_OPTIMIZERS["schedule_free_sgd"](), schedule_free, FREE),
    "schedule_free_adamw": (INNER_OPTIMIZERS["schedule_free_adamw"](), schedule_free, {"lr": [0.02, 0.01], **MOMENTS}),
}


def unrolled(task: TensorTask, rule: Rule, buckets: Buckets) -> tuple[float, list[float]]:
    """The validation loss after `HORIZON` steps of `rule` on the plain module, and its derivatives by λ [K]."""
    module = task.build_model(0).double().train()
    weights: dict[str, Tensor] = {name: p.detach().requires_grad_() for name, p in module.named_parameters()}
    values = {name: torch.tensor(row, dtype=torch.float64, requires_grad=True) for name, row in buckets.items()}
    states: dict[str, dict[str, Any]] = {name: {} for name in weights}
    batches = list(task.train_batches(0, 0))
    for step in range(HORIZON):
        h = {name: row[len(row) * step // HORIZON] for name, row in values.items()}
        inputs, targets = batches[step % len(batches)]
        loss = task.loss(functional_call(module, weights, (inputs,)), targets)
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        stepped = zip(weights.items(), gradients, strict=True)
        weights = {name: rule(w, states[name], g, h, step + 1) for (name, w), g in stepped}
    inputs, targets = task.val
    judged = {name: states[name].get("judged", w) for name, w in weights.items()}
    loss = task.loss(functional_call(module, judged, (inputs,)), targets)
    derivatives = torch.autograd.grad(loss, list(values.values()), materialize_grads=True)
    return loss.item(), torch.cat(derivatives).tolist()


METHODS: dict[str, dict[str, Any]] = {
    "double_backward": {},
    "jvp": {"method": "jvp", "chunk_size": 3},
    "reverse": {"estimator": "reverse"},
}


@pytest.mark.parametrize("case", CASES)
def test_hypergradients_equal_reverse_mode_through_the_unrolled_run(case: str) -> None:
    optimizer, rule, buckets = CASES[case]
    task = image_task(mlp)
    loss, expected = unrolled(task, rule, buckets)
    ends = torch.tensor([len(row) for row in buckets.values()]).cumsum(0)[:-1].tolist()
    for method, options in METHODS.items():
        options = dict(options)
        estimator = ESTIMATORS[options.pop("estimator", "forward")]
        problem = make_problem(task, buckets, optimizer=optimizer, **options)
        result = estimator(InnerRun(problem, flat(buckets), 0, HORIZON))
        assert result.val_loss == pytest.approx(loss, rel=1e-12)
        pair = (torch.tensor(part, dtype=torch.float64) for part in (result.hypergradients, expected))
        rows = zip(*(part.tensor_split(ends) for part in pair), strict=True)
        for name, (ours, theirs) in zip(buckets, rows, strict=True):
            if case == "lion" and name in ("beta1", "beta2"):
                assert ours.tolist() == theirs.tolist() == [0.0] * len(ours)  # a sign's derivative
            else:
                # Rounding, which small second moments and Muon's iterations enlarge to 2e-14 over 12 steps.
                assert relative_error(ours, theirs) < 1e-12, (method, name)


# ---- ranks -------------------------------------------------------------------------------------------------------

SHAPES = {"tangent": MeshShape(1, 2, 1), "data": MeshShape(1, 1, 2)}


def on_ranks(case: str, ranks: Ranks) -> list[float]:
    optimizer, _, buckets = CASES[case]
    problem = make_problem(image_task(mlp), buckets, optimizer=optimizer)
    return estimate_forward(InnerRun(problem, flat(buckets), 0, HORIZON, ranks)).hypergradients


def can_be(case: str, axis: str) -> bool:
    """An optimizer that treats each parameter as a whole is refused where `mesh.data` cuts them."""
    return axis == "tangent" or not needs_layout(CASES[case][0])


ON_RANKS = [(case, axis) for case in CASES for axis in SHAPES if can_be(case, axis)]


def kept(case: str, axis: str) -> bool:
    """Whether CI has an optimizer on an axis: one on the first and the next on the second, if it can be there."""
    usual = list(SHAPES)[list(CASES).index(case) % 2]
    return axis == (usual if can_be(case, usual) else "tangent")


@pytest.fixture(scope="module")
def by_rank(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, dict[str, list[float]]]]:
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "wanted.json").write_text(json.dumps(wanted(request, "case", "axis")))
    ended = start_ranks([__file__, str(folder)], 2, [folder])
    assert [(rank.status, rank.err) for rank in ended] == [(0, "")] * 2
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize(("case", "axis"), slow_unless(kept, ON_RANKS))
def test_two_ranks_compute_what_one_does(
    case: str, axis: str, by_rank: list[dict[str, dict[str, list[float]]]]
) -> None:
    alone = on_ranks(case, ONE_RANK)
    for results in by_rank:
        if axis == "tangent":
            assert results[axis][case] == alone
        else:
            # Sums over parts of a batch round differently, through 8 steps and divisions by small second moments.
            assert relative_error(results[axis][case], alone) < 1e-12


if __name__ == "__main__":
    torch.set_num_threads(1)
    results: dict[str, dict[str, list[float]]] = {}
    asked = json.loads((Path(sys.argv[1]) / "wanted.json").read_text())
    for axis, shape in SHAPES.items():
        with Ranks(read_environment(), shape, CPU) as ranks:
            results[axis] = {case: on_ranks(case, ranks) for case in CASES if [case, axis] in asked}
    (Path(sys.argv[1]) / f"{read_environment().rank}.json").write_text(json.dumps(results))
