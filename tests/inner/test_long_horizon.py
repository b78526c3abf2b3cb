"""A horizon of 10,000 steps, for which forward mode is made: exact and in memory that stays as it is."""

from __future__ import annotations

import pytest
import torch
from problems import CPU, flat, image_task, make_problem, mlp

from fds_dist.common.memory import own_peak_bytes
from fds_dist.inner.estimators import ESTIMATORS
from fds_dist.inner.run import InnerRun

STEPS = 10_000
BUCKETS = {"lr": [0.05, 0.02], "momentum": [0.5], "weight_decay": [1e-3]}
ALLOWED = 20 * 2**20
"""Bytes. Keeping the states and tangents of all steps would take 170 MB; an interpreter's own growth is a few."""


@pytest.mark.slow
def test_forward_and_reverse_mode_agree_over_ten_thousand_steps_and_memory_is_flat() -> None:
    problem = make_problem(image_task(mlp), BUCKETS)
    values = flat(BUCKETS)
    ESTIMATORS["forward"](InnerRun(problem, values, 0, STEPS // 100))  # what is there once
    before = own_peak_bytes(CPU)
    forward = ESTIMATORS["forward"](InnerRun(problem, values, 0, STEPS))
    grown = own_peak_bytes(CPU) - before
    reverse = ESTIMATORS["reverse"](InnerRun(problem, values, 0, STEPS))
    ours, reference = (torch.tensor(each.hypergradients, dtype=torch.float64) for each in (forward, reverse))
    error = float((ours - reference).norm() / reference.norm())
    print(f"relative difference {error:.1e}, peak memory grew by {grown / 2**20:.1f} MiB")
    # Rounding of 1e-16 in each of 10,000 steps, which contract towards a minimum: they do not amplify it.
    assert error <= 1e-8
    assert float(reference.norm()) > 1e-6
    assert grown < ALLOWED
