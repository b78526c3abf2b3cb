"""Sweeps: files in the format of Weights & Biases, checked before anything starts, and run with or without W&B."""

from __future__ import annotations

from fds_dist.sweep.file import Sweep, read_sweep
from fds_dist.sweep.local import JobResult, run_locally

__all__ = ["JobResult", "Sweep", "read_sweep", "run_locally"]
