"""A search of twelve inner steps by `fds_dist.optimize`, as several tests run it."""

from __future__ import annotations

from typing import Any

import fds_dist

CONFIG: dict[str, Any] = {
    "task": {"name": "own_tasks:blobs"},
    "inner": {"epochs": 1},  # 4 steps
    "hyperparameters": {"lr": {"init": 0.05, "step": 0.02, "buckets": 2}, "momentum": 0.9},
    "outer": {"optimizer": "sign", "steps": 3, "tolerance": 1e-9},
    "consistency": {"witness": "off"},
    "name": "run",
}


def optimize(*overrides: str, **arguments: Any) -> fds_dist.RunResult:
    """Runs `CONFIG` with `overrides`, or resumes what `arguments` name."""
    config = None if "resume" in arguments else CONFIG
    return fds_dist.optimize(config, overrides, **{"progress": False, **arguments})
