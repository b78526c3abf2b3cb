"""Time and memory of one inner step, measured on this device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from fds_dist.engine.inner_run import initial_state
from fds_dist.engine.problem import Problem
from fds_dist.live_memory import peak_bytes
from fds_dist.schedule import Segment
from fds_dist.share import Share
from fds_dist.tangents import differentiate

REPEATS = 5


@dataclass(frozen=True)
class StepMeasurement:
    """One inner step on one rank's part of a batch."""

    plain_seconds: float
    """A step without tangents."""
    tangent_seconds: float
    """What one more tangent adds."""
    peak_bytes: int
    """Activations, gradient and the products of one chunk of tangents; beside weights, state and tangents."""


def measure_step(problem: Problem, parts: int = 1, chunk: int = 1) -> StepMeasurement:
    """Medians over a few steps on the first batch, of which this rank sees one of `parts` equal parts.

    Args:
        chunk: tangents in the product whose memory is measured.
    """
    network = problem.network(0)
    loss = problem.training_loss(network)
    state = initial_state(problem, network)
    update = problem.update(network)
    inputs, targets = next(problem.batches(0))
    samples = -(-len(inputs) // parts)
    batch = network.cast((inputs[:samples], targets[:samples]))
    network.share = Share(1 / parts)
    h = problem.values_in(Segment(0, 1, dict.fromkeys(problem.space.bucket_counts, 0)), problem.space.initial())
    theta = problem.theta(h)
    tangents = torch.zeros(max(2, chunk), network.layout.size, dtype=problem.dtype, device=problem.device)
    theta_tangents = theta.new_zeros(len(tangents), len(theta))

    def plain() -> None:
        leaf = state.weights.detach().requires_grad_()
        (gradient,) = differentiate(loss(leaf, theta, batch)[0], leaf)
        update(state.weights, state.optimizer, gradient, h)

    def with_tangents(count: int) -> Callable[[], None]:
        def step() -> None:
            point = problem.make_point(loss, state.weights, theta, batch, 0, problem.chunk_size > 1)
            point.products(tangents[:count], theta_tangents[:count])

        return step

    plain_seconds = _median_seconds(plain, problem.device)
    one, two = (_median_seconds(with_tangents(count), problem.device) for count in (1, 2))
    return StepMeasurement(plain_seconds, max(two - one, 0.0), peak_bytes(with_tangents(chunk), problem.device))


def _median_seconds(step: Callable[[], None], device: torch.device) -> float:
    def timed() -> float:
        began = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    timed()  # warm-up
    return statistics.median(timed() for _ in range(REPEATS))
