"""How many tangents a step takes at once: as many as free memory holds, and as an eager trial step has memory for.

Both depend on the machine. What they say is this rank's alone; the ranks of a run take the least of all.
"""

from __future__ import annotations

from dataclasses import replace

from fds_dist.common.out_of_memory import is_out_of_memory, request_of
from fds_dist.distributed.exchanges import rehearsed
from fds_dist.inner.measurement import compiled_peaks, kept_bytes, step_peak
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import first_of
from fds_dist.inner.stopwatch import run_steps

PLANNED = 0.9
"""The share of free memory that is planned with: peaks are predicted within a tenth."""
COMPILED = 0.5
"""The same for compiled steps on a CPU: a compiler takes memory too, and a process that runs out of it ends without a
word."""


def in_chunks(problem: Problem, size: int) -> Problem:
    """The problem with `size` tangents at once."""
    return replace(problem, tangents=replace(problem.tangents, chunk_size=size))


def size_that_fits(problem: Problem, most: int, tangents: int, parts: int, free: int) -> int:
    """C in 1 … `most` by measured bytes: a + b·C of a step at its peak, beside the state and all tangents.

    Args:
        tangents: of this rank.
        parts: ranks that share out each batch and the tangents.
        free: bytes.
    """
    is_eager = problem.tangents.compile == "off"

    def peaks(count: int) -> tuple[int, ...]:
        """Of steps with so many tangents, those that lie on lines."""
        if is_eager:
            return (step_peak(in_chunks(problem, 2), count, parts),)
        return compiled_peaks(problem, count, parts)

    try:
        lines = list(zip(peaks(1), peaks(2), strict=True))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return 1
    room = round((PLANNED if is_eager else COMPILED) * free) - kept_bytes(problem, tangents, parts)
    return min(fitting(one, two, room, most) for one, two in lines)


def fitting(one: int, two: int, free: int, most: int) -> int:
    """The largest C in 1 … `most` whose peak is within `free` bytes, by the line through those of 1 and 2 tangents."""
    each = two - one
    return most if each <= 0 else max(1, min(most, 1 + (free - one) // each))


def size_with_memory(problem: Problem, size: int, tangents: int, parts: int) -> tuple[int, str]:
    """`size` or its half, the half of that, …: the first with which a step on this rank's part does not run out of
    memory, and what ran out before it ("" where nothing did). One at a time is not tried."""
    lack = ""
    while size > 1 and (lacking := _lack(in_chunks(problem, size), tangents, parts)):
        size, lack = size // 2, lack or lacking
    return size, lack


def _lack(problem: Problem, tangents: int, parts: int) -> str:
    """What a step with so many tangents lacks of memory, or ""."""
    try:
        with rehearsed():
            run_steps(problem, tangents, 1, ranks=first_of(parts, problem.device))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return request_of(error)  # after which the error is gone, and with it the tensors of its traceback
    return ""
