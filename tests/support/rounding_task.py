"""A search whose ranks differ in the last bits of their numbers, as GPUs may. As a program: `… CONFIG.json`."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

import fds_dist
from fds_dist.inner.estimate import Estimate
from fds_dist.outer.loop import OuterLoop

RANK = int(os.environ.get("RANK", "0"))
NOISE = 2e-7
"""Relative: the rounding of float32."""


def noisy(loop: OuterLoop) -> OuterLoop:
    """The loop with an estimator whose numbers are rounded otherwise on rank 1, another way in each call."""

    def estimator(run: object) -> Estimate:
        estimate = loop.estimator(run)  # type: ignore[arg-type]
        random = [1 + NOISE * RANK * torch.rand(()).item() for _ in (*estimate.hypergradients, 0.0)]
        moved = [value * factor for value, factor in zip(estimate.hypergradients, random, strict=False)]
        return replace(estimate, hypergradients=moved, val_loss=estimate.val_loss * random[-1])

    return replace(loop, estimator=estimator)


if __name__ == "__main__":
    plain = OuterLoop.run
    OuterLoop.run = lambda self, progress: plain(noisy(self), progress)  # type: ignore[method-assign]
    config = json.loads(Path(sys.argv[1]).read_text())
    try:
        schedule = fds_dist.optimize(config, progress=False).schedule.to_json()
    except Exception as error:
        schedule = f"{type(error).__name__}: {error}"
    Path(f"schedule-{RANK}").write_text(schedule)
