"""Small networks and problems that the tests on a GPU share, and the device they run on.

`FDS_DIST_DEVICE=cpu` runs these tests without a GPU: they then show that they are sound themselves, and nothing of a
GPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from problems import CLASSES, TensorTask, flat, make_problem
from torch import Tensor, nn

from fds_dist.common.randomness import generator
from fds_dist.inner.estimate import Estimate, Estimator
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerRun
from fds_dist.models import build_model

DEVICE = torch.device(os.environ.get("FDS_DIST_DEVICE", "cuda:0"))
BUCKETS = {"lr": [0.05, 0.02], "momentum": [0.5], "weight_decay": [0.01]}
HORIZON = 6
SIDE = 8


class Recurrent(nn.Module):
    """The rows of an image one after the other through a recurrent layer."""

    def __init__(self, kind: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.inner, self.last = kind(SIDE, 5, batch_first=True), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(x.squeeze(1))[0][:, -1])


class Attending(nn.Module):
    """The rows of an image as the words of a sentence, through a transformer's layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(SIDE, 8), nn.Linear(8, CLASSES)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(self.first(x.squeeze(1))).mean(1))


class Pooled(nn.Module):
    """Adaptive pooling to more than one place, whose backward pass on a GPU adds in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(1, 4, 3)
        self.pool, self.last = nn.AdaptiveAvgPool2d(4), nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.pool(self.inner(x).tanh()).flatten(1))


def built_in(name: str, **options: Any) -> Callable[[], nn.Module]:
    return partial(build_model, name, options, input_shape=(1, SIDE, SIDE), classes=CLASSES, seed=0)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "lenet": built_in("lenet"),
    "wrn": built_in("wrn-10-1"),
    "transformer": Attending,
    "lstm": partial(Recurrent, nn.LSTM),
    "gru": partial(Recurrent, nn.GRU),
}


def images(count: int, key: str) -> tuple[Tensor, Tensor]:
    """[count, 1, 8, 8] in float64 and their labels [count]."""
    random = generator("gpu", key)
    labels = torch.randint(CLASSES, (count,), generator=random)
    return torch.randn(count, 1, SIDE, SIDE, generator=random, dtype=torch.float64) + labels[
        :, None, None, None
    ], labels


def task_of(network: str) -> TensorTask:
    """Three batches of 8 images per epoch."""
    return TensorTask(NETWORKS[network], images(24, "train"), images(16, "val"))


def problem_of(network: str, method: str, device: torch.device, **options: Any) -> Problem:
    return replace(make_problem(task_of(network), BUCKETS, method=method, **options), device=device)


def estimated(problem: Problem, estimator: Estimator) -> Estimate:
    return estimator(InnerRun(problem, flat(BUCKETS), 0, HORIZON))
