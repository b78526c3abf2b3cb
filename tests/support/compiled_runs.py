"""What runs with compiled steps are tried on: hyperparameters, a network with random masks, what rounding may do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from problems import Buckets
from torch import nn

from fds_dist.tangents.compiled import steps
from fds_dist.tangents.compiled.calls import FastestCalls, Timed

HORIZON = 6
"""Steps: an epoch of five and one more; three with three tangents, and three with four."""
ROUNDING = 1e-11
"""Float64 rounding through six steps, there and back; Adam's division by small moments amplifies it."""

BUCKETS: Buckets = {"lr": [0.2, 0.1], "momentum": [0.6], "weight_decay": [0.02]}
LOSS_BUCKETS: Buckets = {"lr": [0.2, 0.1], "smoothing": [0.1, 0.3, 0.2]}
ADAM_BUCKETS: Buckets = {"lr.bias": [0.02], "lr.rest": [0.02, 0.01], "beta1": [0.8], "weight_decay": [0.1]}


def with_dropout() -> nn.Module:
    """`mlp` with random masks."""
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.Tanh(), nn.Dropout(0.4), nn.Linear(5, 4))


def linear() -> nn.Module:
    """The network whose steps have the fewest operators, on images [B, 1, 6, 6]; 4 classes."""
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 4))


def told(seconds: Mapping[int, float]) -> type[Timed]:
    """What times calls, and finds that those with so many tangents take so long; with other numbers of them a second.

    So tangents are split alike on any machine.
    """

    class Told(Timed):
        def __call__(self, inputs: Any) -> Any:
            outputs = super().__call__(inputs)
            rows = len(inputs.directions)
            self.seconds[rows] = seconds.get(rows, 1.0)
            return outputs

    return Told


def as_if_timed(monkeypatch: pytest.MonkeyPatch, seconds: Mapping[int, float]) -> None:
    """See `told`. With a mapping of nothing, tangents are split into as few calls as can be."""
    monkeypatch.setattr(steps, "Timed", told(seconds))
    monkeypatch.setattr(FastestCalls, "took", lambda *_: None)
