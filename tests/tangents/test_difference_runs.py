"""Hypergradients by differences of gradients with all that a training step may have, against reverse mode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from anywhere_tasks import augmented_task, tasks
from problems import Buckets, conv_bn, flat, image_task, make_problem, relative_error
from torch import nn

from fds_dist.inner.estimators import estimate_forward, estimate_reverse
from fds_dist.inner.run import InnerRun

HORIZON = 6
FLOAT64, FLOAT32 = 1e-7, 1e-2
"""Errors of a product (see `test_difference`: 1e-8 and 2e-3 at most), amplified some times over the steps."""

BUCKETS: Buckets = {"lr": [0.1, 0.05], "momentum": [0.5], "weight_decay": [0.02]}
LIVE = ("1.running_mean", "1.running_var", "4.running_mean", "4.running_var")


def with_dropout() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 4))


CASES: dict[str, tuple[Callable[[], tuple[Any, Buckets]], dict[str, Any]]] = {
    "running_statistics": (lambda: (image_task(conv_bn), BUCKETS), {"val_batch_norm": "running"}),
    "accumulate": (lambda: (image_task(conv_bn), BUCKETS), {"accumulate": 3}),
    "both": (lambda: (image_task(conv_bn), BUCKETS), {"accumulate": 2, "val_batch_norm": "running"}),
    "dropout": (lambda: (image_task(with_dropout), BUCKETS), {}),
    "clip_norm": (lambda: (image_task(conv_bn), BUCKETS), {"clip_norm": 0.5, "ema": 0.8}),
    "augment": (augmented_task, {}),
    **{name: (lambda name=name: tasks()[name], {}) for name in tasks()},
}


def hypergradients(name: str, method: str, dtype: torch.dtype) -> list[float]:
    make, options = CASES[name]
    task, buckets = make()
    problem = make_problem(task, buckets, dtype=dtype, **options)
    live = LIVE if options.get("val_batch_norm") == "running" else ()
    run = InnerRun(replace(problem, live_buffers=live).by(method), flat(buckets), 0, HORIZON)
    return (estimate_forward if method == "difference" else estimate_reverse)(run).hypergradients


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, FLOAT64), (torch.float32, FLOAT32)])
@pytest.mark.parametrize("name", CASES)
def test_hypergradients_are_those_of_reverse_mode(name: str, dtype: torch.dtype, bound: float) -> None:
    expected = hypergradients(name, "jvp", dtype)  # in the same dtype, or augmentations draw other numbers
    assert relative_error(hypergradients(name, "difference", dtype), expected) < bound
