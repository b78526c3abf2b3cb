"""Taken away: a plain PyTorch loop under the driver is the inner run that the schedule was learned with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from problems import conv_bn, flat, make_problem, relative_error, smoothed_task
from torch import Tensor, nn

import fds_dist
from fds_dist.common.flat import FlatLayout, trainable_parameters
from fds_dist.inner.horizon import run_horizon
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerRun, InnerState
from fds_dist.tangents.optimizers import SGD, Adam

LEARNED_OVER, HORIZON = 12, 31
CLIP = 0.02  # two thirds of a gradient's elements are larger

SGD_BUCKETS = {"lr": [0.1, 0.3, 0.05], "momentum": [0.0, 0.9], "weight_decay": [0.0, 1e-3, 1e-2]}
ADAM_BUCKETS = {
    "lr": [0.01, 0.03],
    "beta1": [0.0, 0.9, 0.5],
    "beta2": [0.9, 0.99],
    "eps": [1e-4],
    "weight_decay": [0.1],
}
LOSS_BUCKETS = {"smoothing": [0.0, 0.1, 0.2, 0.05]}


def inner_run(problem: Problem, values: list[float]) -> list[Tensor]:
    """The weights after each step of an inner run over HORIZON."""
    path = []

    def keep(state: InnerState, loss: Tensor) -> bool:
        path.append(state.weights)
        return True

    run_horizon(InnerRun(problem, values, 0, HORIZON, on_step=keep), ())
    return path


def plain_loop(problem: Problem, folder: Path, optimizer_class: Any, **options: Any) -> list[Tensor]:
    """The weights after each step of a loop of one's own over the same batches, driven by the folder's schedule."""
    model = problem.build_model(0).double()
    optimizer = optimizer_class(model.parameters(), **options)
    driver = fds_dist.load_schedule(folder).attach(optimizer, horizon=HORIZON)
    parameters, batches, path = trainable_parameters(model), problem.batches(0), []
    for _ in range(HORIZON):
        x, y = next(batches)
        optimizer.zero_grad()
        problem.task.loss(model(x), y, {"smoothing": driver.values["smoothing"]}).backward()
        nn.utils.clip_grad_value_(model.parameters(), driver.schedule.optimizer["clip_gradient"])
        optimizer.step()
        driver.step()
        path.append(FlatLayout.of(parameters).flatten(parameters, torch.float64, "cpu"))
    return path


@pytest.mark.parametrize(
    ("optimizer", "buckets", "theirs", "options"),
    [
        (SGD(), SGD_BUCKETS, torch.optim.SGD, {"lr": 1.0}),
        (SGD(nesterov=True), SGD_BUCKETS, torch.optim.SGD, {"lr": 1.0, "momentum": 0.5, "nesterov": True}),
        (Adam(), ADAM_BUCKETS, torch.optim.Adam, {}),
        (Adam(decoupled=True), ADAM_BUCKETS, torch.optim.AdamW, {}),
    ],
    ids=["sgd", "nesterov", "adam", "adamw"],
)
def test_a_plain_loop_under_the_driver_is_the_inner_run(
    tmp_path: Path, optimizer: Any, buckets: dict[str, list[float]], theirs: Any, options: dict[str, Any]
) -> None:
    buckets = {**buckets, **LOSS_BUCKETS}
    problem = make_problem(smoothed_task(conv_bn), buckets, optimizer=optimizer, clip_gradient=CLIP)
    problem.space.schedule(flat(buckets), LEARNED_OVER, problem.optimizer_info).save(tmp_path / "schedule.json")
    ours, plain = inner_run(problem, flat(buckets)), plain_loop(problem, tmp_path, theirs, **options)
    for expected, found in zip(ours, plain, strict=True):
        # Roundings of 1e-16 that 31 steps may amplify; found below 1e-15.
        assert relative_error(found, expected) < 1e-12
