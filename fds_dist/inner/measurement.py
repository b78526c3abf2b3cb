"""Time and memory of one inner step, measured on this device.

Shapes: k = live tangents, C = tangents per chunk.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from math import ceil
from typing import Any

from fds_dist.common.batch import Batch, common_rows, first_samples
from fds_dist.common.memory import peak_bytes
from fds_dist.inner.estimate import validate
from fds_dist.inner.problem import Problem
from fds_dist.inner.shape_peak import shape_peak, why_untold
from fds_dist.inner.stopwatch import run_steps, time_steps
from fds_dist.tasks.base import Task

REPEATS = 5
FEW = 4
"""The fewest samples of a measurement. An extrapolation uses some number of samples and half of that."""
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
    """
    problem = replace(problem, tangents=replace(problem.tangents, compile="off"))
    samples = _samples_of_part(problem, parts)
    enough = _affordable(problem, samples)
    if enough == samples:
        return _measured(part_of(problem, parts), most, REPEATS)
    few, more = (_measured(on_few(problem, count), most, 1) for count in (enough // 2, enough))
    quantities = ("plain_seconds", "idle_seconds", "fixed_seconds", "chunk_seconds", "row_seconds", "peak_bytes")
    at_all: dict[str, Any] = {}
    for name in quantities:
        ends = getattr(few, name), getattr(more, name)
        at_all[name] = max(ends[1] + (ends[1] - ends[0]) * (samples - enough) / (enough - enough // 2), ends[1])
    told = _peak_by_shapes(part_of(problem, parts), more.tangents)
    if isinstance(told, int):
        return replace(more, **{**at_all, "peak_bytes": told}, extrapolated=True, by_shapes=True)
    return replace(more, **{**at_all, "peak_bytes": round(at_all["peak_bytes"])}, extrapolated=True, untold=told)


def _samples_of_part(problem: Problem, parts: int) -> int:
    """Of one of `parts` equal parts of the first batch; 1 where they cannot be told apart, and every rank sees all."""
    return ceil((common_rows(next(problem.batches(0))) or 1) / parts)


def part_of(problem: Problem, parts: int) -> Problem:
    """The problem on one of `parts` equal parts of each batch."""
    return problem if parts == 1 else on_few(problem, _samples_of_part(problem, parts))


def _peak_by_shapes(problem: Problem, tangents: int) -> int | str:
    """As `step_peak`, by the shapes of tensors alone: few samples do not show where the peak of many is. Where it
    cannot be told so, the reason; "" where it was not tried."""
    if problem.device.type != "cpu":  # elsewhere the allocator counts, and steps are shorter
        return ""
    try:
        return shape_peak(problem, tangents) - (1 + tangents) * problem.state_bytes
    except Exception as error:
        if reason := why_untold(error):
            return reason
        raise


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


def _measured(problem: Problem, most: int, repeats: int) -> StepMeasurement:
    """The fit to the times of steps with 0 and 1 tangents, with one chunk, and with one tangent more."""
    chunk = problem.chunk_size
    full = max(1, min(chunk, most))
    counts = {0, 1, full, *([full + 1] if most > full else [])}
    seconds = {count: _median(problem, count, repeats) for count in sorted(counts)}
    row = max(0.0, seconds[full] - seconds[1]) / (full - 1) if full > 1 else 0.0
    beyond = max(0.0, seconds[full + 1] - seconds[full] - row) if most > full else 0.0
    return StepMeasurement(
        plain_seconds=_median(problem.by("plain"), 0, repeats),
        idle_seconds=seconds[0],
        fixed_seconds=max(0.0, seconds[1] - row - beyond),
        chunk_seconds=beyond,
        row_seconds=row,
        chunk=chunk,
        tangents=(held := max(1, min(2 * chunk, most))),  # a second one has the gradient beside it
        peak_bytes=step_peak(problem, held),
    )


def _median(problem: Problem, tangents: int, repeats: int) -> float:
    return statistics.median(time_steps(problem, tangents, repeats, long_enough=0.0, warm_up=1).seconds)


def step_peak(problem: Problem, tangents: int) -> int:
    """Bytes at the peak of two steps and the validation after them, without weights, state and tangents, on each of
    which an inner run needs more."""

    def run() -> None:
        training, _tangents = run_steps(problem, tangents, 2)
        validate(one_val_batch, training.network, training.judged_state, 0)

    one_val_batch = replace(problem, task=FewSamples(problem.task, None))
    return peak_bytes(run, problem.device) - (1 + tangents) * problem.state_bytes


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
