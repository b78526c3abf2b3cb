"""Micro-batches: hypergradients against reverse mode through a written-out loop, memory, what is refused and said.

The reference shares no code with the engine: slices of the batch, each loss times its share of the samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from problems import (
    CPU,
    TensorTask,
    conv_bn,
    flat,
    image_task,
    images,
    make_problem,
    mlp,
    relative_error,
    smoothed_task,
)
from selection import slow_unless
from torch import Tensor, nn
from torch.func import functional_call

from fds_dist.common.batch import micro_batches
from fds_dist.common.faults import UserError
from fds_dist.common.memory import peak_bytes
from fds_dist.inner.dry_run import dry_run
from fds_dist.inner.estimators import ESTIMATORS
from fds_dist.inner.estimators.greedy import greedy_estimator
from fds_dist.inner.horizon import run_horizon
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerRun
from fds_dist.inner.training import Training
from fds_dist.inner.witness import Witness
from fds_dist.tangents import parts as parts_module

EXACT = 1e-12
"""Between exact methods: float64 rounding (1e-16), amplified some ten times in 10 steps."""

DIFFERENCES = 1e-6
"""Central differences of a smooth loss at h = 1e-5 of the value: see `test_hypergradients`."""

BUCKETS = {"lr": [0.1, 0.05], "momentum": [0.5], "weight_decay": [0.01, 0.02]}
SLICES = {3: [slice(0, 3), slice(3, 6), slice(6, 8)], 4: [slice(i, i + 2) for i in (0, 2, 4, 6)]}
"""Of batches of 8 samples, by the number of micro-batches."""
HORIZON = 10


def unrolled(task: TensorTask, values: Mapping[str, Tensor], count: int, graph: bool) -> Tensor:
    """The validation loss after plain SGD that sums (b/B)·loss over the micro-batches."""
    module = task.build_model(0).double().train()
    weights: dict[str, Tensor] = {name: p.detach().requires_grad_() for name, p in module.named_parameters()}
    velocity = {name: torch.zeros_like(w) for name, w in weights.items()}
    batches = list(task.train_batches(0, 0))
    for step in range(HORIZON):
        h = {name: row[len(row) * step // HORIZON] for name, row in values.items()}
        extra = ({"smoothing": h["smoothing"]},) if "smoothing" in h else ()
        x, y = batches[step % len(batches)]
        total = {name: torch.zeros_like(w) for name, w in weights.items()}
        for part in SLICES[count]:
            share = (part.stop - part.start) / 8
            loss = task.loss(functional_call(module, weights, (x[part],)), y[part], *extra) * share
            gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=graph)
            total = {name: total[name] + g for name, g in zip(weights, gradients, strict=True)}
        for name, w in weights.items():
            velocity[name] = h["momentum"] * velocity[name] + total[name] + h["weight_decay"] * w
            weights[name] = w - h["lr"] * velocity[name]
            if not graph:
                weights[name] = weights[name].detach().requires_grad_()
    x, y = task.val
    return (task.val_loss or task.loss)(functional_call(module, weights, (x,)), y)


def reference(task: TensorTask, buckets: Mapping[str, list[float]], count: int) -> list[float]:
    values = {name: torch.tensor(row, dtype=torch.float64, requires_grad=True) for name, row in buckets.items()}
    return torch.cat(torch.autograd.grad(unrolled(task, values, count, graph=True), list(values.values()))).tolist()


def hypergradients(problem: Problem, buckets: Mapping[str, list[float]], estimator: str = "forward") -> list[float]:
    return ESTIMATORS[estimator](InnerRun(problem, flat(buckets), 0, HORIZON)).hypergradients


WAYS: list[tuple[str, dict[str, Any]]] = [
    ("forward", {"method": "double_backward"}),
    ("forward", {"method": "jvp"}),
    ("forward", {"method": "jvp", "chunk_size": 3}),
    ("reverse", {}),
]


def kept(estimator: str, options: dict[str, Any], count: int) -> bool:
    """Whether CI has a number of micro-batches: 3, which are uneven, by all ways, and 4 by those that cost least."""
    return count == 3 or options.get("method") != "jvp"


@pytest.mark.parametrize(
    ("estimator", "options", "count"), slow_unless(kept, [(*way, count) for way in WAYS for count in (3, 4)])
)
def test_hypergradients_are_those_of_a_loop_over_slices(estimator: str, options: dict[str, Any], count: int) -> None:
    """Batch-norm normalizes each micro-batch by itself, in parts of uneven size too."""
    problem = make_problem(image_task(), BUCKETS, accumulate=count, **options)
    expected = reference(image_task(), BUCKETS, count)
    assert relative_error(hypergradients(problem, BUCKETS, estimator), expected) < EXACT
    whole = hypergradients(make_problem(image_task(), BUCKETS, **options), BUCKETS, estimator)
    assert relative_error(whole, expected) > 1e-3  # the micro-batches' own statistics make a difference


@pytest.mark.parametrize("method", ["double_backward", "jvp"])
def test_hyperparameters_of_the_loss_are_differentiated_in_every_micro_batch(method: str) -> None:
    buckets = {**BUCKETS, "smoothing": [0.1, 0.2]}
    problem = make_problem(smoothed_task(), buckets, accumulate=3, method=method)
    assert relative_error(hypergradients(problem, buckets), reference(smoothed_task(), buckets, 3)) < EXACT


@pytest.mark.parametrize("estimator", ["forward", "reverse", "greedy"])
def test_without_batch_norm_micro_batches_change_nothing_but_rounding(estimator: str) -> None:
    def of(count: int) -> list[float]:
        problem = make_problem(image_task(mlp), BUCKETS, accumulate=count)
        estimate = greedy_estimator(0.5) if estimator == "greedy" else ESTIMATORS[estimator]
        return estimate(InnerRun(problem, flat(BUCKETS), 0, HORIZON)).hypergradients

    assert relative_error(of(3), of(1)) < EXACT


def norms() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 4))


SHORT = 6
"""Steps of a network that normalizes two or three samples at a time, which soon amplifies every rounding."""


def plain_running_loss(lr: float, count: int) -> float:
    """A plain loop whose validation reads the running statistics: they move once per micro-batch, in order."""
    task = image_task(norms)
    module = task.build_model(0).double().train()
    optimizer = torch.optim.SGD(module.parameters(), lr=lr, momentum=0.5, weight_decay=0.01)
    batches = list(task.train_batches(0, 0))
    for step in range(SHORT):
        x, y = batches[step % len(batches)]
        optimizer.zero_grad()
        for part in SLICES[count]:
            (task.loss(module(x[part]), y[part]) * ((part.stop - part.start) / 8)).backward()
        optimizer.step()
    module.eval()
    return task.loss(module(task.val[0]), task.val[1]).item()


@pytest.mark.parametrize("estimator", ["forward", "reverse"])
def test_live_buffers_go_from_micro_batch_to_micro_batch_with_their_derivatives(estimator: str) -> None:
    buckets = {"lr": [0.02]}
    problem = make_problem(
        image_task(norms),
        buckets,
        {"momentum": 0.5, "weight_decay": 0.01},
        accumulate=3,
        method="jvp",
        val_batch_norm="running",
    )
    problem = replace(problem, live_buffers=("2.running_mean", "2.running_var"))
    estimate = ESTIMATORS[estimator](InnerRun(problem, [0.02], 0, SHORT))
    assert estimate.val_loss == pytest.approx(plain_running_loss(0.02, 3), rel=EXACT)
    h = 1e-6
    difference = (plain_running_loss(0.02 + h, 3) - plain_running_loss(0.02 - h, 3)) / (2 * h)
    assert relative_error(estimate.hypergradients, [difference]) < DIFFERENCES
    constant = replace(problem, live_buffers=())
    without = ESTIMATORS["forward"](InnerRun(constant, [0.02], 0, SHORT)).hypergradients
    assert relative_error(without, [difference]) > 1e-3


def test_dropout_has_masks_of_its_own_in_each_micro_batch_and_the_same_for_every_tangent() -> None:
    def with_dropout() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 12), nn.Tanh(), nn.Dropout(0.5), nn.Linear(12, 4))

    problem = make_problem(image_task(with_dropout), BUCKETS, accumulate=4)
    errors = relative_error(hypergradients(problem, BUCKETS), hypergradients(problem, BUCKETS, "reverse"))
    assert errors < EXACT
    assert len({problem.step_seed(0, 5, 0, index) for index in range(4)}) == 4
    assert problem.step_seed(0, 5, 0, 0) == problem.step_seed(0, 5)  # as without micro-batches


@pytest.mark.parametrize(("method", "estimator"), [("double_backward", "forward"), ("jvp", "forward")])
def test_memory_falls_with_the_number_of_micro_batches(method: str, estimator: str) -> None:
    """Activations of a batch of 64 outweigh the weights; a quarter of them lives at a time."""
    x, y = images(64, "train")
    task = TensorTask(conv_bn, (x, y), images(2, "val"), batch_size=64)

    def peak(count: int) -> int:
        problem = make_problem(task, BUCKETS, accumulate=count, method=method)
        return peak_bytes(lambda: ESTIMATORS[estimator](InnerRun(problem, flat(BUCKETS), 0, 2)), CPU)

    assert peak(4) < 0.35 * peak(1)  # 0.25 of the activations, and the weights' vectors
    assert peak(2) < 0.6 * peak(1)


def test_a_batch_is_cut_into_parts_of_nearly_one_size() -> None:
    batch = (torch.arange(10.0), torch.arange(10))
    cut = micro_batches(batch, 4)
    assert [len(x) for (x, _), _ in cut] == [3, 3, 2, 2]
    assert [fraction for _, fraction in cut] == [0.3, 0.3, 0.2, 0.2]
    assert torch.equal(torch.cat([x for (x, _), _ in cut]), batch[0])
    assert len(micro_batches(batch, 99)) == 10
    assert micro_batches(batch, 1) == [(batch, 1.0)]


def test_the_witness_trains_the_same_micro_batches_and_would_see_a_missing_factor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = make_problem(image_task(), BUCKETS, accumulate=3)
    witness = Witness(problem, exact=True)
    error = witness.compare_steps()
    assert error is not None and error < 1e-10
    assert (witness.compare_hypergradient(ESTIMATORS["forward"]) or 1.0) < 1e-3

    class Unweighted(parts_module.MicroBatch):
        def __init__(self, at: Callable[..., Any], fraction: float) -> None:
            super().__init__(at, 1.0)

    monkeypatch.setattr("fds_dist.inner.training.MicroBatch", Unweighted)
    with pytest.raises(UserError, match="the first training loss is"):
        Witness(problem, exact=True).compare_steps()


def tried(problem: Problem) -> tuple[str, ...]:
    return dry_run(problem, "auto", plain_steps=2)[1]


def test_more_micro_batches_than_samples_are_refused() -> None:
    with pytest.raises(UserError, match=r"inner.accumulate: 9 micro-batches of 8 samples"):
        tried(make_problem(image_task(), BUCKETS, accumulate=9))


def test_batches_without_samples_are_refused() -> None:
    class Quadratic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return (self.w * x).square().sum()

    class Numbers(TensorTask):
        def train_batches(self, outer_step: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
            return iter([(torch.tensor(2.0), torch.tensor(1.0))] * self.steps_per_epoch)

    data = (torch.ones(8), torch.ones(8))
    task = Numbers(Quadratic, data, data, lambda output, target: (output - target.mean()) ** 2)
    with pytest.raises(UserError, match=r"inner.accumulate: the samples of .* cannot be told apart"):
        tried(make_problem(task, BUCKETS, accumulate=2))


def test_batch_norm_that_would_see_one_sample_is_refused() -> None:
    with pytest.raises(UserError, match=r"on the last micro-batch of batch 0 .* of 1 sample"):
        tried(make_problem(image_task(norms), BUCKETS, accumulate=5))


def test_a_loss_that_is_no_mean_over_samples_is_named() -> None:
    def largest(output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output, target, reduction="none").logsumexp(0)

    remarks = tried(make_problem(image_task(mlp, largest), BUCKETS, accumulate=2))
    assert any("inner.accumulate: the loss is applied to each micro-batch" in remark for remark in remarks)
    remarks = tried(make_problem(image_task(mlp), BUCKETS, accumulate=3))
    assert not any("inner.accumulate" in remark for remark in remarks)


def test_losses_of_steps_are_means_over_the_batch() -> None:
    losses = {}
    for count in (1, 3):
        training = Training(InnerRun(make_problem(image_task(mlp), BUCKETS, accumulate=count), flat(BUCKETS), 0, 4))
        losses[count] = float(training.point(torch.zeros(0, dtype=torch.float64)).loss)
    assert losses[3] == pytest.approx(losses[1], rel=EXACT)


def test_a_rank_without_tangents_has_the_gradient_of_the_others() -> None:
    problem = make_problem(image_task(), BUCKETS, accumulate=3, method="jvp")
    run = InnerRun(problem, flat(BUCKETS), 0, 5)
    without, _ = run_horizon(run)
    with_all, _ = run_horizon(run, sorted(range(5), key=problem.space.starts(5).__getitem__))
    assert torch.equal(without.state.weights, with_all.state.weights)
