"""Losses and networks for batches that are split over ranks, and a program that runs them: see test_split_losses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fds_dist

WEIGHTS = torch.tensor([1.0, 5.0, 0.2], dtype=torch.float64)
LOSSES: dict[str, Any] = {
    "mean": F.cross_entropy,
    "sum": lambda output, target: F.cross_entropy(output, target, reduction="sum"),
    "class_weights": lambda output, target: F.cross_entropy(output, target, weight=WEIGHTS),
    "ignore_index": lambda output, target: F.cross_entropy(output, target, ignore_index=0),
    "contrast": lambda output, target: (output @ output.T).tanh().mean() + F.cross_entropy(output, target),
}
"""Of the whole batch, whatever part a rank sees."""


class AcrossSamples(nn.Module):
    """Subtracts the mean of all samples that it sees."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


def network(across: bool) -> nn.Module:
    torch.manual_seed(0)
    middle = [AcrossSamples()] if across else []
    return nn.Sequential(nn.Linear(5, 6), *middle, nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.0), nn.Linear(6, 3))


def hypergradients(loss: str, across: bool, estimator: str, name: str, data: int) -> list[float]:
    """Of three learning rates and a momentum over seven steps; the last batch does not divide."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(47, 5, generator=generator, dtype=torch.float64), torch.randint(3, (47,), generator=generator)
    task = fds_dist.task_from_datasets((x, y), batch_size=7, loss=LOSSES[loss], val_fraction=0.2)
    config = {
        "inner": {"epochs": 1},
        "hyperparameters": {"lr": {"init": 0.1, "buckets": 3, "step": 0.1}, "momentum": {"init": 0.5, "step": 0.1}},
        "outer": {"optimizer": "sign", "steps": 1},
        "estimator": estimator,
        "mesh": {"data": data},
        "consistency": {"witness": "off"},  # which each rank would ask alone, of the whole batch
        "dtype": "float64",
        "name": name,
    }
    result = fds_dist.optimize(config, task=task, model=lambda seed: network(across), progress=False)
    (record,) = result.history
    return [*record.hypergradients["lr"], *record.hypergradients["momentum"], record.val_loss]


def main(path: Path, data: int) -> None:
    """Writes all hypergradients, and what the network that reads across samples is answered."""
    results: dict[str, Any] = {
        f"{loss} {estimator}": hypergradients(loss, False, estimator, f"{loss}-{estimator}-{data}", data)
        for loss in LOSSES
        for estimator in ("forward", "reverse")
    }
    try:
        hypergradients("mean", True, "forward", f"across-{data}", data)
        results["across"] = "taken"
    except fds_dist.UserError as error:
        results["across"] = str(error)
    path.write_text(json.dumps(results))


if __name__ == "__main__":
    import os

    main(Path(f"{sys.argv[1]}.{os.environ.get('RANK', '0')}"), int(sys.argv[2]))
