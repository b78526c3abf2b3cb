"""Time and memory of one inner step, measured on this device.

Shapes: k = live tangents, C = tangents per chunk.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from math import ceil
from typing import Any

from fds_dist.common.batch import Batch, common_rows, first_samples
from fds_dist.common.memory import peak_bytes
from fds_dist.distributed.exchanges import rehearsed
from fds_dist.inner.estimate import validate
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import first_of
from fds_dist.inner.shape_peak import shape_peak, why_untold
from fds_dist.inner.stopwatch import run_steps, time_steps
from fds_dist.tasks.base import Task

REPEATS = 5
FEW = 4
"""The fewest samples of a measurement. An extrapolation uses some number of samples and half of that."""
TIMES = ("plain_seconds", "idle_seconds", "fixed_seconds", "chunk_seconds", "row_seconds")
PEAKS = ("peak_bytes", "rank_peak_bytes")
COMPARED_STATES, SHARED_STATES = 5, 3
"""States per tangent of a compiled step that is compared: before it, by both steps and by the eager one from moved
weights, and one on its way; and those that `step_peak` of one tangent counts among them. On an MLP, a LeNet and a
WRN-10-1, with 1 to 9 tangents, the whole peak was told an eighth too low to a third too high."""
PATIENCE = 2.0
"""Seconds that a plain step may take. If it takes longer, the whole batch is extrapolated from a few samples."""


@dataclass(frozen=True)
class StepMeasurement:
    """One inner step on one rank's part of a batch: a + b·⌈k/C⌉ + c·k seconds with k live tangents."""

    plain_seconds: float
    """A step of plain training."""
    idle_seconds: float
    """A step without a live tangent, by the method of the others: some push a zero tangent then."""
    fixed_seconds: float
    """a: what a step with tangents takes whatever their number."""
    chunk_seconds: float
    """b: what each chunk of tangents adds; 0 where all tangents fit into one."""
    row_seconds: float
    """c: what each tangent adds."""
    chunk: int
    """C."""
    tangents: int
    """With which the memory was measured."""
    peak_bytes: int
    """Activations, gradient and the products of one chunk of tangents, without weights, state and tangents."""
    rank_peak_bytes: int
    """The same on a rank of the `data` axis, with what it sends and receives: of a whole batch, not of its part. Of
    compiled steps the higher of `compiled_peaks`."""
    extrapolated: bool = False
    """Whether it was measured on a part of the samples."""
    by_shapes: bool = False
    """Whether the memory nevertheless is that of all samples; see `shape_peak`."""
    untold: str = ""
    """Why shapes do not tell the memory, where that was asked of them in vain."""

    def seconds(self, tangents: int) -> float:
        """A step with so many live tangents."""
        if not tangents:
            return self.idle_seconds
        return self.fixed_seconds + self.chunk_seconds * ceil(tangents / self.chunk) + self.row_seconds * tangents

    @property
    def tangent_seconds(self) -> float:
        """What one more tangent adds in the mean over many."""
        return self.row_seconds + self.chunk_seconds / self.chunk


def measure_step(problem: Problem, parts: int = 1, most: int = 1) -> StepMeasurement:
    """Measures a few eager steps on one of `parts` equal parts of the first batch, and takes medians.

    Args:
        most: the most tangents that a rank owns.

    Raises:
        UserError: the network's batches cannot be split into so many parts.
    """
    measured = _measured_eager(replace(problem, tangents=replace(problem.tangents, compile="off")), parts, most)
    is_eager = problem.tangents.compile == "off"
    return measured if is_eager or measured.untold else _with_compiled_peak(measured, problem, parts)


def _with_compiled_peak(measured: StepMeasurement, problem: Problem, parts: int) -> StepMeasurement:
    peak = shape_peak_beyond if measured.by_shapes else step_peak
    size = problem.tangents.compiled_chunk
    return replace(measured, tangents=size, rank_peak_bytes=max(compiled_peaks(problem, size, parts, peak)))


def _measured_eager(problem: Problem, parts: int, most: int) -> StepMeasurement:
    """See `measure_step`."""
    samples = _samples_of_part(problem, parts)
    enough = _affordable(problem, samples)
    if enough == samples:
        return _measured(problem, parts, most, REPEATS)
    few, more = (_measured(on_few(problem, count * parts), parts, most, 1) for count in (enough // 2, enough))
    at_all: dict[str, Any] = {}
    for name in (*TIMES, *PEAKS):
        ends = getattr(few, name), getattr(more, name)
        at_all[name] = max(ends[1] + (ends[1] - ends[0]) * (samples - enough) / (enough - enough // 2), ends[1])
    told = _peaks_by_shapes(problem, parts, more.tangents)
    if isinstance(told, str):
        at_all |= {name: round(at_all[name]) for name in PEAKS}
        return replace(more, **at_all, extrapolated=True, untold=told)
    return replace(more, **at_all | dict(zip(PEAKS, told, strict=True)), extrapolated=True, by_shapes=True)


def _samples_of_part(problem: Problem, parts: int) -> int:
    """Of one of `parts` equal parts of the first batch; 1 where they cannot be told apart, and every rank sees all."""
    return ceil((common_rows(next(problem.batches(0))) or 1) / parts)


def part_of(problem: Problem, parts: int) -> Problem:
    """The problem on one of `parts` equal parts of each batch."""
    return problem if parts == 1 else on_few(problem, _samples_of_part(problem, parts))


def _peaks_by_shapes(problem: Problem, parts: int, tangents: int) -> tuple[int, int] | str:
    """As `_peaks`, by the shapes of tensors alone: few samples do not show where the peak of many is. Where they cannot
    be told so, the reason; "" where it was not tried."""
    if problem.device.type != "cpu":  # elsewhere the allocator counts, and steps are shorter
        return ""
    try:
        return _peaks(lambda problem, parts: shape_peak_beyond(problem, tangents, parts), problem, parts)
    except Exception as error:
        if reason := why_untold(error):
            return reason
        raise


def _peaks(peak: Callable[[Problem, int], int], problem: Problem, parts: int) -> tuple[int, int]:
    """`PEAKS`, of a function of the problem and the ranks of the `data` axis."""
    of_part = peak(part_of(problem, parts), 1)
    return of_part, of_part if parts == 1 else peak(problem, parts)


def _affordable(problem: Problem, samples: int) -> int:
    """How many of the `samples` a measurement is made of: all, or as many as take no longer than they may.

    The more there are, the more of the peak memory is what grows with them, and the better an extrapolation is.
    """
    count = 2 * FEW
    while count < samples:
        seconds = _plain_seconds(problem, count)
        if seconds * samples / count <= PATIENCE:
            break
        if 2 * seconds > PATIENCE / 4:
            return count
        count *= 2
    return samples


def _plain_seconds(problem: Problem, samples: int) -> float:
    """The time of one step without tangents, on some `samples`."""
    return _median(on_few(problem, samples).by("plain"), 0, repeats=1)


def _measured(whole: Problem, parts: int, most: int, repeats: int) -> StepMeasurement:
    """The fit to the times of steps with 0 and 1 tangents, with one chunk, and with one tangent more, on one of `parts`
    equal parts of each batch."""
    problem, chunk = part_of(whole, parts), whole.chunk_size
    full = max(1, min(chunk, most))
    counts = {0, 1, full, *([full + 1] if most > full else [])}
    seconds = {count: _median(problem, count, repeats) for count in sorted(counts)}
    row = max(0.0, seconds[full] - seconds[1]) / (full - 1) if full > 1 else 0.0
    beyond = max(0.0, seconds[full + 1] - seconds[full] - row) if most > full else 0.0
    # A second chunk has the gradient beside it; along the `data` axis a third one is on its way.
    held = max(1, min((2 if parts == 1 else 3) * chunk, most))
    peak, rank_peak = _peaks(lambda problem, parts: step_peak(problem, held, parts), whole, parts)
    return StepMeasurement(
        plain_seconds=_median(problem.by("plain"), 0, repeats),
        idle_seconds=seconds[0],
        fixed_seconds=max(0.0, seconds[1] - row - beyond),
        chunk_seconds=beyond,
        row_seconds=row,
        chunk=chunk,
        tangents=held,
        peak_bytes=peak,
        rank_peak_bytes=rank_peak,
    )


def _median(problem: Problem, tangents: int, repeats: int) -> float:
    return statistics.median(time_steps(problem, tangents, repeats, long_enough=0.0, warm_up=1).seconds)


def step_peak(problem: Problem, tangents: int, parts: int = 1) -> int:
    """Bytes at the peak of two steps and the validation after them, without weights, state and tangents, on each of
    which an inner run needs more.

    Args:
        parts: on the first of so many ranks of the `data` axis, with its part of each batch and what it would send.
    """

    def run() -> None:
        training, _tangents = run_steps(problem, tangents, 2, ranks=first_of(parts, problem.device))
        validate(one_val_batch, training.network, training.judged_state, 0, training.axis)

    one_val_batch = replace(problem, task=FewSamples(problem.task, None))
    with rehearsed():
        return peak_bytes(run, problem.device) - kept_bytes(problem, tangents, parts)


def shape_peak_beyond(problem: Problem, tangents: int, parts: int = 1) -> int:
    """As `step_peak`, by the shapes of tensors alone; see `shape_peak`."""
    return shape_peak(problem, tangents, parts) - kept_bytes(problem, tangents, parts)


def compiled_peaks(
    problem: Problem, size: int, parts: int = 1, peak: Callable[[Problem, int, int], int] = step_peak
) -> tuple[int, int]:
    """As `step_peak`, of compiled steps that take `size` tangents at once: two lines, the higher of which holds.

    The first is that of an eager step of as many, in which activations are the peak; a compiled one needs less. The
    second is that of the first steps, which are compared with eager ones, where states are the peak.

    Args:
        peak: that of eager steps.
    """

    def eager(size: int) -> int:
        options = replace(problem.tangents, compiled_chunk=size)
        return peak(replace(problem, tangents=options).uncompiled(), size, parts)

    state = -(-problem.state_bytes // parts)
    return eager(size), eager(1) + (COMPARED_STATES * size - SHARED_STATES) * state


def kept_bytes(problem: Problem, tangents: int, parts: int = 1) -> int:
    """Bytes of weights, state and tangents on one of `parts` ranks of the `data` axis: weights are whole there."""
    weights = problem.network(0).initial_weights
    share = -(-problem.state_bytes // parts)
    return weights.numel() * weights.element_size() * (parts - 1) // parts + (1 + tangents) * share


def on_few(problem: Problem, samples: int) -> Problem:
    """The same problem on the first `samples` of each batch, with a single validation batch."""
    return replace(problem, task=FewSamples(problem.task, samples))


class FewSamples:
    """A task whose batches are the beginnings of those of another; it has one validation batch.

    Args:
        samples: of each batch; None: all.
    """

    def __init__(self, task: Task, samples: int | None) -> None:
        self._task, self._samples = task, samples

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def train_batches(self, outer_step: int, epoch: int) -> Iterator[Batch]:
        """See `Task`."""
        return map(self._cut, self._task.train_batches(outer_step, epoch))

    def val_batches(self, outer_step: int) -> Iterator[Batch]:
        """See `Task`."""
        return map(self._cut, islice(self._task.val_batches(outer_step), 1))

    def _cut(self, batch: Batch) -> Batch:
        return batch if self._samples is None else first_samples(batch, self._samples)
