"""Greedy hypergradients whose steps are traced, beside those whose steps are taken operator by operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from compiled_runs import ADAM_BUCKETS, BUCKETS, HORIZON, LOSS_BUCKETS, ROUNDING, with_dropout
from problems import (
    Buckets,
    TensorTask,
    flat,
    image_task,
    make_problem,
    mlp,
    one_conv_bn,
    relative_error,
    smoothed_task,
)

from fds_dist.inner.estimate import Estimate
from fds_dist.inner.estimators import estimate_greedy
from fds_dist.inner.estimators.greedy import GreedyRun, tangents_at_once
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerRun
from fds_dist.tangents.compiled import ways
from fds_dist.tangents.compiled.graph import Graph
from fds_dist.tangents.optimizers import Adam


def traced(problem: Problem, chunk: int = 2) -> Problem:
    """Three numbers are in use at a time, so that the last chunk is filled up."""
    return replace(problem, tangents=replace(problem.tangents, compile="trace", compiled_chunk=chunk))


def estimated(problem: Problem, discount: float, buckets: Buckets = BUCKETS) -> tuple[Estimate, list[str]]:
    """The estimate of a run, and what it noted."""
    notes: list[str] = []
    return estimate_greedy(InnerRun(problem, flat(buckets), 0, HORIZON, note=notes.append), discount), notes


CASES: dict[str, tuple[Callable[[], TensorTask], Buckets, dict[str, Any]]] = {
    "batch-norm": (image_task, BUCKETS, {}),
    "loss hyperparameters": (smoothed_task, LOSS_BUCKETS, {}),
    "dropout": (lambda: image_task(with_dropout), BUCKETS, {"method": "jvp"}),
    "knots": (lambda: image_task(mlp), {"lr": [0.2, 0.1, 0.3], "momentum": [0.6]}, {"shape": "linear"}),
    "micro-batches, average, clipped": (
        lambda: image_task(mlp),
        BUCKETS,
        {"accumulate": 2, "ema": 0.9, "clip_norm": 0.3, "clip_hvp": 0.05},
    ),
    "adam and groups": (
        lambda: image_task(mlp),
        ADAM_BUCKETS,
        {"optimizer": Adam(), "groups": {"bias": "bias", "rest": "."}},
    ),
}


@pytest.mark.parametrize("discount", [0.0, 0.5])
@pytest.mark.parametrize("name", CASES)
def test_traced_greedy_steps_give_what_eager_ones_give(name: str, discount: float) -> None:
    task, buckets, options = CASES[name]
    problem = make_problem(task(), buckets, **options)
    compiled = traced(problem)
    exact, (estimate, notes) = estimated(problem, discount, buckets)[0], estimated(compiled, discount, buckets)
    assert compiled.compiled_steps.way == 1
    assert all(note.startswith("tangents are taken one at a time") for note in notes)  # a pair of convolutions
    assert relative_error(estimate.hypergradients, exact.hypergradients) < ROUNDING
    assert estimate.val_loss == pytest.approx(exact.val_loss, rel=ROUNDING)


def products_in(problem: Problem) -> int:
    """Matrix products in the traced step, of the network, its gradient and the tangents."""
    nodes = problem.compiled_steps.graph.module.graph.nodes
    return sum(node.target in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default) for node in nodes)


def test_without_memory_a_traced_step_has_no_hessian_product() -> None:
    counts = {}
    for discount in (0.0, 0.5):
        compiled = traced(make_problem(image_task(mlp), BUCKETS))
        estimated(compiled, discount)
        counts[discount] = products_in(compiled)
    assert 0 < counts[0.0] <= 5 < counts[0.5]  # two layers: two products forward, three backward


@pytest.mark.parametrize("discount", [0.0, 0.5])
def test_a_number_has_the_same_bits_beside_any_others(discount: float) -> None:
    problem = traced(make_problem(image_task(one_conv_bn), BUCKETS, dtype=torch.float32), chunk=2)
    run = InnerRun(problem, flat(BUCKETS), 0, HORIZON)
    together = estimate_greedy(run, discount).hypergradients
    for elements in ([0, 1, 2], [3]):  # as two ranks would share them out
        greedy = GreedyRun(run, discount)
        greedy.owned = [elements]
        greedy.train()
        assert [greedy.total[element].item() for element in elements] == [together[element] for element in elements]


def test_a_wrong_greedy_step_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = ways.trace

    def forgetful(function: Any, *others: Any) -> Graph:
        """Of a step that forgets more than it should."""
        return trace(replace(function, discount=0.49), *others)

    problem = make_problem(image_task(mlp), BUCKETS)
    exact = estimated(problem, 0.5)[0]
    monkeypatch.setattr(ways, "trace", forgetful)
    estimate, notes = estimated(traced(problem), 0.5)
    assert len(notes) == 1 and notes[0].startswith("the step by trace is not right: the tangents differ by ")
    assert estimate == exact  # to the last bit


def test_as_many_tangents_at_once_as_numbers_are_read() -> None:
    assert tangents_at_once(make_problem(image_task(mlp), BUCKETS).space, HORIZON) == 3
    knots = make_problem(image_task(mlp), {"lr": [0.2, 0.1, 0.3], "momentum": [0.6]}, shape="linear")
    assert tangents_at_once(knots.space, HORIZON) == 3
