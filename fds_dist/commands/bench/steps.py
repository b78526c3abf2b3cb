"""What a step with k tangents costs by each method, beside a plain step and the paper's way.

Shapes: k = live tangents.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from fds_dist.commands.bench.by_hand import PaperStep, PlainStep
from fds_dist.commands.bench.kernels import kernels_per_step
from fds_dist.common.memory import peak_bytes
from fds_dist.inner.plan import PLAIN_STEP_COST, TANGENT_STEP_COST
from fds_dist.inner.problem import Problem
from fds_dist.inner.stopwatch import REPEATS, WARM_UP, Stopwatch, run_steps, time_steps

TANGENTS = (1, 4, 9, 16)
"""The numbers of tangents that are measured."""
PLAIN, PAPER = "plain", "paper"
METHODS = (PAPER, "double_backward", "jvp")
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
    """How the step is compiled; `off`: it is not."""
    k: int
    median_ms: float
    q25: float
    """Milliseconds, like `q75`: half of the times lie between the two."""
    q75: float
    over_limit: float
    """The median over 1 + 2k plain steps."""
    kernels: int
    """Kernels of a step; on a CPU operations, views and allocations left out."""
    compile_s: float | None
    """Seconds that the first step took beyond the median, where steps are compiled."""
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


def measure_network(problem: Problem, clock: Clock, done: Callable[[], None]) -> NetworkFigures:
    """The figures of one network, as many as there is time for.

    Args:
        done: called after each row, whether measured or left out.
    """
    plain = PlainStep(problem)
    times = _timed_by_hand(plain, problem)
    plain_seconds = statistics.median(times)
    steps: list[StepFigures] = []
    left_out: dict[str, list[str]] = {}
    for method, k in rows(problem):
        expected = STEPS_PER_CELL * SLACK * limit(k) * plain_seconds
        if expected > clock.left:
            left_out.setdefault(NO_TIME, []).append(f"{method} k = {k}")
        else:
            try:
                steps.append(_measured(problem, method, k, plain_seconds))
            except RuntimeError as error:  # an operator without a second derivative, or not enough memory
                left_out.setdefault(str(error).partition("\n")[0], []).append(f"{method} k = {k}")
        done()
    return NetworkFigures(
        weights=problem.network(0).layout.size,
        plain_ms=1000 * plain_seconds,
        plain_kernels=kernels_per_step(lambda count: [plain() for _ in range(count)], problem.device),
        steps=tuple(steps),
        left_out={reason: tuple(names) for reason, names in left_out.items()},
    )


def rows(problem: Problem) -> Iterator[tuple[str, int]]:
    """What is measured of a network: (method, k), what takes longest last."""
    for k in TANGENTS:
        for method in METHODS:
            if method != PAPER or PaperStep.can_do(problem):
                yield method, k


def limit(tangents: int) -> float:
    """The least that a step with so many tangents can cost, in plain steps."""
    return PLAIN_STEP_COST + TANGENT_STEP_COST * tangents


def _measured(problem: Problem, method: str, k: int, plain_seconds: float) -> StepFigures:
    if method == PAPER:
        by_hand = PaperStep(problem, k)
        times = _timed_by_hand(by_hand, problem)

        def run(count: int) -> None:
            step = PaperStep(problem, k)
            for _ in range(count):
                step()
    else:
        chosen = problem.by(method)
        chosen = replace(chosen, tangents=replace(chosen.tangents, chunk_size=k))
        times = time_steps(chosen, k).seconds

        def run(count: int) -> None:
            run_steps(chosen, k, count)

    median, low, high = _quartiles(times)
    return StepFigures(
        method=method,
        compile="off",
        k=k,
        median_ms=1000 * median,
        q25=1000 * low,
        q75=1000 * high,
        over_limit=median / (plain_seconds * limit(k)),
        kernels=kernels_per_step(run, problem.device),
        compile_s=None,
        peak_bytes=peak_bytes(lambda: run(2), problem.device),
    )


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
