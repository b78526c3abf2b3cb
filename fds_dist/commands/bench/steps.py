"""What a step with k tangents costs by each method, beside a plain step and the paper's way.

Shapes: k = live tangents.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from fds_dist.commands.bench.by_hand import PaperStep, PlainStep
from fds_dist.commands.bench.kernels import kernels_per_step
from fds_dist.common.memory import peak_bytes
from fds_dist.inner.compile_choice import LONG, has_compiler, with_compile
from fds_dist.inner.plan import PLAIN_STEP_COST, TANGENT_STEP_COST
from fds_dist.inner.problem import Problem
from fds_dist.inner.stopwatch import REPEATS, WARM_UP, Stopwatch, run_steps, time_steps
from fds_dist.tangents.compiled import WAYS

TANGENTS = (1, 4, 9, 16)
"""The numbers of tangents that are measured."""
PLAIN, PAPER = "plain", "paper"
METHODS = (PAPER, "double_backward", "jvp")
COMPILED = ("trace", "inductor")
"""Ways to take the step of `jvp` as one graph: `tangents.compile`."""
MAKING_SECONDS = {"off": 0.0, "trace": 10.0, "inductor": 90.0}
"""What it is thought to take to make such a graph of a network."""
STEPS_PER_CELL = WARM_UP + REPEATS + 7
"""Steps that one row takes at least: its times, its kernels and its memory."""
NO_TIME = "no time left"
SLACK = 1.5
"""Over the limit of 1 + 2k plain steps: what a step is thought to take before it is measured."""


@dataclass(frozen=True)
class StepFigures:
    """One step with k live tangents, by one method."""

    method: str
    """Of Hessian-vector products; `paper`: one double-backward pass per tangent, written by hand for SGD."""
    compile: str
    """How the step was taken in the end: `off` (eagerly), `trace` or `inductor`."""
    k: int
    median_ms: float
    q25: float
    """Milliseconds, like `q75`: half of the times lie between the two."""
    q75: float
    over_limit: float
    """The median over 1 + 2k plain steps."""
    kernels: int | None
    """Kernels of a step; on a CPU operations, views and allocations left out (None where inductor hides them)."""
    compile_s: float | None
    """Seconds that the first step took beyond the median, where it was traced or compiled for this row."""
    peak_bytes: int
    """Of an inner run of two steps, with its network, weights, state and tangents."""


@dataclass(frozen=True)
class NetworkFigures:
    """The steps of one network."""

    weights: int
    plain_ms: float
    """The median of a training step in plain PyTorch: `loss.backward()` and `torch.optim`."""
    plain_kernels: int
    steps: tuple[StepFigures, ...]
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Reason → the rows that were not measured for it."""


@dataclass(frozen=True)
class Clock:
    """How much time there is."""

    ends: float
    """On the monotonic clock."""

    @classmethod
    def of(cls, seconds: float) -> Clock:
        """One that ends in so many seconds."""
        return cls(time.monotonic() + seconds)

    @property
    def left(self) -> float:
        """Seconds, negative when it is over."""
        return self.ends - time.monotonic()

    def part(self, share: float) -> Clock:
        """One that ends after a share of the time that is left."""
        return Clock.of(share * max(self.left, 0.0))


class NotMeasured(RuntimeError):
    """A row was left out; the message is the reason."""


def measure_network(problem: Problem, clock: Clock, done: Callable[[], None]) -> NetworkFigures:
    """The figures of one network, as many as there is time for.

    Args:
        done: called after each row, whether measured or left out.
    """
    plain = PlainStep(problem)
    plain_seconds = statistics.median(_timed_by_hand(plain, problem))
    steps: list[StepFigures] = []
    left_out: dict[str, list[str]] = {}
    made: dict[tuple[str, str, int], Problem] = {}
    for row in rows(problem):
        expected = STEPS_PER_CELL * SLACK * limit(row.k) * plain_seconds + MAKING_SECONDS[row.compile]
        try:
            if expected > clock.left:
                raise NotMeasured(NO_TIME)
            steps.append(_measured(problem, row, plain_seconds, made))
        except RuntimeError as error:  # an operator without a second derivative, or not enough memory, too
            left_out.setdefault(str(error).partition("\n")[0], []).append(str(row))
        done()
    return NetworkFigures(
        weights=problem.network(0).layout.size,
        plain_ms=1000 * plain_seconds,
        plain_kernels=kernels_per_step(lambda count: [plain() for _ in range(count)], problem.device),
        steps=tuple(steps),
        left_out={reason: tuple(names) for reason, names in left_out.items()},
    )


class Row(NamedTuple):
    """What is measured of a network."""

    method: str
    compile: str
    k: int

    def __str__(self) -> str:
        return f"{self.method}{'' if self.compile == 'off' else f' {self.compile}'} k = {self.k}"


def rows(problem: Problem) -> Iterator[Row]:
    """What is measured of a network, what takes longest last."""
    for way in ("off", *COMPILED):
        for k in TANGENTS:
            methods = METHODS if way == "off" else ("jvp",)
            yield from (Row(method, way, k) for method in methods if method != PAPER or PaperStep.can_do(problem))


def limit(tangents: int) -> float:
    """The least that a step with so many tangents can cost, in plain steps."""
    return PLAIN_STEP_COST + TANGENT_STEP_COST * tangents


def _measured(
    problem: Problem, row: Row, plain_seconds: float, made: dict[tuple[str, str, int], Problem]
) -> StepFigures:
    """One row; a problem whose steps have been compiled is in `made` for the rows after it."""
    k, compile_s, way = row.k, None, "off"
    if row.method == PAPER:
        times = _timed_by_hand(PaperStep(problem, k), problem)

        def run(count: int) -> None:
            step = PaperStep(problem, k)
            for _ in range(count):
                step()
    else:
        chunk = max(TANGENTS) if problem.device.type == "cuda" and row.compile != "off" else k
        is_new = (row.method, row.compile, chunk) not in made
        chosen = made.setdefault((row.method, row.compile, chunk), _by_row(problem, row, chunk))
        watch = time_steps(chosen, k)
        times = watch.seconds
        if row.compile != "off":
            way = WAYS[chosen.compiled_steps.way]
            compile_s = watch.first_seconds - statistics.median(times) if is_new else None

        def run(count: int) -> None:
            run_steps(chosen, k, count)

    median, low, high = _quartiles(times)
    return StepFigures(
        method=row.method,
        compile=way,
        k=k,
        median_ms=1000 * median,
        q25=1000 * low,
        q75=1000 * high,
        over_limit=median / (plain_seconds * limit(k)),
        kernels=None if way == "inductor" and problem.device.type == "cpu" else kernels_per_step(run, problem.device),
        compile_s=compile_s,
        peak_bytes=peak_bytes(lambda: run(2), problem.device),
    )


def _by_row(problem: Problem, row: Row, chunk: int) -> Problem:
    """The problem with its steps taken so; a graph has `chunk` tangents, whatever the number of live ones.

    Raises:
        NotMeasured: they cannot be.
    """
    chosen = problem.by(row.method)
    chosen = replace(chosen, tangents=replace(chosen.tangents, chunk_size=chunk, compile="off"))
    if row.compile == "off":
        return chosen
    if row.compile == "inductor" and not has_compiler(problem.device):
        raise NotMeasured("there is no compiler")
    chosen, remark = with_compile(chosen, row.compile, [LONG], [0] * row.k, data_ranks=1)
    if chosen.tangents.compile == "off":
        raise NotMeasured(remark)
    return chosen


def _quartiles(seconds: list[float]) -> tuple[float, float, float]:
    """Median, lower and upper quartile."""
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return median, low, high


def _timed_by_hand(step: Callable[[], None], problem: Problem) -> list[float]:
    """Seconds of single steps, taken as those of an inner run are."""
    watch, more = Stopwatch(problem.device), True
    while more:
        step()
        more = watch()
    return watch.seconds
