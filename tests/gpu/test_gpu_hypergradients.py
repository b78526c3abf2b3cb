"""Hypergradients on a GPU against those on the CPU, in float64."""

from __future__ import annotations

import pytest
import torch
from gpu_cases import DEVICE, NETWORKS, estimated, problem_of
from problems import CPU, relative_error

from fds_dist.inner.estimate import Estimator
from fds_dist.inner.estimators import ESTIMATORS
from fds_dist.inner.estimators.greedy import greedy_estimator

pytestmark = pytest.mark.gpu

ROUNDING = 1e-9
"""float64 on both, with sums in another order: 1e-16 each, which six steps of a network at its start multiply by 1e4 at
most; what a wrong kernel does is above 1e-6."""
BY_DIFFERENCE = 1e-4
"""A difference of gradients divides that rounding by its step, about 1e-6 of the weights' length."""
ROWS = {
    "jvp": ("jvp", ESTIMATORS["forward"], ROUNDING),
    "double_backward": ("double_backward", ESTIMATORS["forward"], ROUNDING),
    "reverse": ("double_backward", ESTIMATORS["reverse"], ROUNDING),
    "greedy": ("double_backward", greedy_estimator(0.9), ROUNDING),
    "difference": ("difference", ESTIMATORS["forward"], BY_DIFFERENCE),
}
RECURRENT = {"lstm", "gru"}
"""Have no forward-mode derivative, on any device."""


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_gpu_computes_the_hypergradients_of_the_cpu(network: str, row: str) -> None:
    method, estimator, tolerance = ROWS[row]
    if row == "jvp" and network in RECURRENT:
        pytest.skip("recurrent layers have no jvp")
    here, there = (hypergradients(network, method, estimator, device) for device in (CPU, DEVICE))
    assert relative_error(there, here) <= tolerance
    if row in ("jvp", "double_backward"):  # beside another mode on the GPU itself
        assert relative_error(there, hypergradients(network, method, ESTIMATORS["reverse"], DEVICE)) <= tolerance


def hypergradients(network: str, method: str, estimator: Estimator, device: torch.device) -> list[float]:
    estimate = estimated(problem_of(network, method, device), estimator)
    assert all(estimate.hypergradients)
    return estimate.hypergradients


@pytest.mark.parametrize("network", NETWORKS)
def test_chunks_of_tangents_agree(network: str) -> None:
    method = "double_backward" if network in RECURRENT else "jvp"
    whole = problem_of(network, method, DEVICE)
    for size in (1, 3):
        chunked = problem_of(network, method, DEVICE, chunk_size=size)
        ours, reference = (estimated(each, ESTIMATORS["forward"]).hypergradients for each in (chunked, whole))
        assert relative_error(ours, reference) <= ROUNDING
