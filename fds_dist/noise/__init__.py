"""Noise of hypergradients, and how wide windows of sharing should be for it (FDS, arXiv 2007.07869, theorem 4.1)."""

from __future__ import annotations

from fds_dist.noise.measure import measure_noise
from fds_dist.noise.plot import plot_noise
from fds_dist.noise.report import NoiseReport, print_noise, write_noise
from fds_dist.noise.runs import cosine_schedule

__all__ = ["NoiseReport", "cosine_schedule", "measure_noise", "plot_noise", "print_noise", "write_noise"]
