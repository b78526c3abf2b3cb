"""Time and memory of one inner step, measured on this device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fds_dist.common.batch import common_rows, first_samples
from fds_dist.common.memory import peak_bytes
from fds_dist.common.timing import median_seconds
from fds_dist.inner.horizon import zero_tangents
from fds_dist.inner.problem import Problem
from fds_dist.inner.training import initial_state
from fds_dist.tangents import Part, Point

REPEATS = 5
FEW = 2
"""Samples of the first measurement. An extrapolation uses this number and twice this number."""
PATIENCE = 2.0
"""Seconds that a plain step may take. If it takes longer, the whole batch is extrapolated from a few samples."""


@dataclass(frozen=True)
class StepMeasurement:
    """One inner step on one rank's part of a batch."""

    plain_seconds: float
    """A step without tangents."""
    tangent_seconds: float
    """The time that one more tangent adds."""
    peak_bytes: int
    """Activations, gradient and the products of one chunk of tangents, without weights, state and tangents."""
    extrapolated: bool = False
    """Whether only `FEW` and twice as many samples were measured."""


def measure_step(problem: Problem, parts: int = 1, chunk: int = 1) -> StepMeasurement:
    """Measures a few steps on one of `parts` equal parts of the first batch, and takes medians.

    Args:
        chunk: tangents in the product whose memory is measured.
    """
    probe = _Probe(problem, parts, chunk)
    if probe.samples <= 2 * FEW or probe.plain_seconds(FEW) * probe.samples / FEW <= PATIENCE:
        return probe.measured(probe.samples, REPEATS)
    few, more = (probe.measured(count, repeats=1) for count in (FEW, 2 * FEW))

    def at_all(quantity: str) -> float:
        ends = getattr(few, quantity), getattr(more, quantity)
        return max(ends[1] + (ends[1] - ends[0]) * (probe.samples - 2 * FEW) / FEW, ends[1])

    return StepMeasurement(
        at_all("plain_seconds"), at_all("tangent_seconds"), round(at_all("peak_bytes")), extrapolated=True
    )


def plain_seconds(problem: Problem, parts: int = 1) -> float:
    """The time of one step without tangents, on one of `parts` equal parts of the first batch."""
    probe = _Probe(problem, parts, 1)
    return probe.plain_seconds(probe.samples)


class _Probe:
    """Steps of a problem at its initial weights, with any tangents."""

    def __init__(self, problem: Problem, parts: int, chunk: int) -> None:
        self._problem, self._chunk = problem, chunk
        self._network = problem.network(0)
        self._loss = problem.training_loss(self._network)
        self._state = initial_state(problem, self._network)
        self._update = problem.update(self._network)
        self._batch = next(problem.batches(0))
        self.samples = -(-(common_rows(self._batch) or 1) // parts)
        """Samples that one rank sees; 1 where they cannot be told apart, and every rank sees the whole batch."""
        self._h = problem.first_numbers
        self._theta = problem.theta(self._h)

    def measured(self, samples: int, repeats: int) -> StepMeasurement:
        """Medians over `repeats` steps on as many samples; memory is that of a micro-batch."""
        device = self._problem.device
        one, two = (median_seconds(self._with_tangents(samples, count), device, repeats) for count in (1, 2))
        return StepMeasurement(
            self.plain_seconds(samples, repeats),
            max(two - one, 0.0),
            peak_bytes(self._with_tangents(-(-samples // self._problem.accumulate), self._chunk), device),
        )

    def plain_seconds(self, samples: int, repeats: int = 1) -> float:
        """The time of a step without tangents."""
        state, point = self._state, self._point_maker(self._problem.by("plain"), samples)

        def plain() -> None:
            self._update(state.weights, state.optimizer, point().gradient, self._h)

        return median_seconds(plain, self._problem.device, repeats)

    def _with_tangents(self, samples: int, count: int) -> Callable[[], None]:
        carried = self._problem.tangents.method != "double_backward"
        tangents = zero_tangents(self._state, range(count), self._network.live if carried else ())
        tangents.weights.fill_(1.0)  # of a zero tangent, a difference would cost nothing
        theta_tangents = self._theta.new_zeros(count, len(self._theta))
        point = self._point_maker(self._problem, samples)

        def step() -> None:
            point().products(tangents.weights, theta_tangents, tangents.buffers)

        return step

    def _point_maker(self, problem: Problem, samples: int) -> Callable[[], Point]:
        """A function that prepares products at the training loss of the first `samples`."""
        part = self._network.cast(Part(first_samples(self._batch, samples)))
        state, vectorize = self._state, problem.chunk_size > 1
        return lambda: problem.make_point(self._loss, state.weights, self._theta, state.buffers, part, 0, vectorize)
