"""A program: hypergradients of vectors and augmentations on the ranks that it is started on, and a retraining."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anywhere_tasks import augmented_task, tasks
from problems import Buckets

import fds_dist

BOUNDS = {"step": 0.01, "min": None, "max": None}
WAYS = {
    "tangent": ("forward", "double_backward", ("augment", "weights")),
    "tangent difference": ("forward", "difference", ("augment", "weights")),
    "data forward": ("forward", "double_backward", ("augment", "weights", "mix")),
    "data jvp": ("forward", "jvp", ("augment", "weights")),
    "data difference": ("forward", "difference", ("augment", "weights", "mix")),
    "data reverse": ("reverse", "auto", ("augment", "weights", "mix")),
}
"""By name: estimator, method and tasks."""
NAMES = [f"{way} {name}" for way, (_, _, names) in WAYS.items() for name in names]
RETRAINED = "tangent augment"
"""Whose result a retraining takes."""


def config(values: Buckets, name: str, **changes: Any) -> dict[str, Any]:
    """One outer step of three epochs, which begins at `values`."""
    hyperparameters = {
        key: {"init": row[0], "buckets": len(row), "size": len(row[0]) if isinstance(row[0], list) else 1, **BOUNDS}
        for key, row in values.items()
    }
    settings = {"inner": {"epochs": 3}, "outer": {"optimizer": "sign", "steps": 1}, "dtype": "float64", "name": name}
    return {**settings, "hyperparameters": hyperparameters, **changes}


def main(path: Path, ranks: int, wanted: Sequence[str]) -> None:
    """Writes the hypergradients of `wanted`, of `NAMES`, and the losses of a retraining."""
    cases: dict[str, Any] = {**tasks(), "augment": augmented_task()}
    results: dict[str, Any] = {}
    for way, (estimator, method, names) in WAYS.items():
        for name in (name for name in names if f"{way} {name}" in {*wanted, RETRAINED}):
            task, values = cases[name]
            changes = {"estimator": estimator, "tangents": {"method": method}, "mesh": {way.split()[0]: ranks}}
            # Each rank compares by itself what it runs with plain PyTorch, as one process does.
            changes["consistency"] = {"witness": "on" if ranks == 1 else "off"}
            settings = config(values, f"{way}-{name}".replace(" ", "-"), **changes)
            (record,) = fds_dist.optimize(settings, task=task, progress=False).history
            numbers = {key: _flat(row) for key, row in record.hypergradients.items()}
            results[f"{way} {name}"] = {**numbers, "loss": [record.val_loss]}
    task = cases["augment"][0]
    retrained = fds_dist.retrain(
        f"runs/{RETRAINED.replace(' ', '-')}", ["epochs=2", "dtype=float64"], task=task, progress=False
    )
    results["retrain"] = [epoch.train_loss for epoch in retrained.results[0].epochs]
    path.write_text(json.dumps(results))


def _flat(row: Any) -> list[float]:
    return [number for value in row for number in (value if isinstance(value, list) else [value])]


if __name__ == "__main__":
    main(Path(f"{sys.argv[1]}.{os.environ.get('RANK', '0')}"), int(sys.argv[2]), json.loads(sys.argv[3]))
