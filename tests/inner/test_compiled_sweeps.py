"""Reverse sweeps whose steps there and back are traced, beside sweeps whose steps are taken operator by operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from compiled_runs import ADAM_BUCKETS, BUCKETS, HORIZON, LOSS_BUCKETS, ROUNDING, with_dropout
from problems import Buckets, TensorTask, flat, image_task, make_problem, mlp, relative_error, smoothed_task

from fds_dist.inner.estimate import Estimate
from fds_dist.inner.estimators.forward import estimate_forward
from fds_dist.inner.estimators.reverse import estimate_reverse
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerRun
from fds_dist.tangents.compiled import ways
from fds_dist.tangents.compiled.graph import Graph
from fds_dist.tangents.optimizers import Adam
from fds_dist.tangents.optimizers.schedule_free import ScheduleFree


def traced(problem: Problem) -> Problem:
    return replace(problem, tangents=replace(problem.tangents, compile="trace"))


def swept(problem: Problem, buckets: Buckets = BUCKETS) -> tuple[Estimate, list[str]]:
    """The estimate of a sweep, and what it noted."""
    notes: list[str] = []
    return estimate_reverse(InnerRun(problem, flat(buckets), 0, HORIZON, note=notes.append)), notes


CASES: dict[str, tuple[Callable[[], TensorTask], Buckets, dict[str, Any]]] = {
    "batch-norm": (image_task, BUCKETS, {}),
    "loss hyperparameters": (smoothed_task, LOSS_BUCKETS, {}),
    "dropout": (lambda: image_task(with_dropout), BUCKETS, {}),
    "micro-batches, average, clipped": (
        lambda: image_task(mlp),
        BUCKETS,
        {"accumulate": 2, "ema": 0.9, "clip_norm": 0.3},
    ),
    "schedule-free": (lambda: image_task(mlp), BUCKETS, {"optimizer": ScheduleFree()}),
    "adam and groups": (
        lambda: image_task(mlp),
        ADAM_BUCKETS,
        {"optimizer": Adam(), "groups": {"bias": "bias", "rest": "."}},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_traced_sweeps_give_what_eager_sweeps_give(name: str) -> None:
    task, buckets, options = CASES[name]
    problem = make_problem(task(), buckets, **options)
    compiled = traced(problem)
    exact, (estimate, notes) = swept(problem, buckets)[0], swept(compiled, buckets)
    assert notes == [] and [each.way for each in compiled.compiled_sweep] == [1, 1]
    assert relative_error(estimate.hypergradients, exact.hypergradients) < ROUNDING
    assert estimate.val_loss == pytest.approx(exact.val_loss, rel=ROUNDING)


def test_traced_sweeps_that_compute_states_again_agree_with_forward_mode() -> None:
    problem = make_problem(image_task(), BUCKETS)
    few = traced(replace(problem, tangents=replace(problem.tangents, kept_bytes=0)))
    exact = estimate_forward(InnerRun(problem, flat(BUCKETS), 0, HORIZON))
    assert relative_error(swept(few)[0].hypergradients, exact.hypergradients) < ROUNDING


def test_live_buffers_have_their_adjoints_in_traced_sweeps() -> None:
    problem = make_problem(image_task(), BUCKETS, val_batch_norm="running")
    names = [name for name, _ in problem.module(0).named_buffers() if "running" in name]
    problem = replace(problem, live_buffers=tuple(names))
    exact, (estimate, notes) = swept(problem)[0], swept(traced(problem))
    assert notes == []
    assert relative_error(estimate.hypergradients, exact.hypergradients) < ROUNDING


def test_a_wrong_pull_back_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = ways.trace

    def wrong(function: Any, *others: Any) -> Graph:
        """Off by a hundredth in its last result: of a step the loss, of a pull-back the derivatives by h."""
        graph = trace(function, *others)

        def run(*tensors: torch.Tensor) -> list[torch.Tensor]:
            *others, last = graph.run(*tensors)
            return [*others, last * 1.011]

        return replace(graph, run=run)

    monkeypatch.setattr(ways, "trace", wrong)
    problem = make_problem(image_task(mlp), BUCKETS)
    estimate, notes = swept(traced(problem))
    assert len(notes) == 2
    assert "the plain step by trace is not right: the loss differ" in notes[0]
    assert "the pull-back by trace is not right: the derivatives by h differ" in notes[1]
    assert notes[1].endswith("; pull-backs are taken eagerly")
    assert estimate == swept(problem)[0]  # to the last bit
