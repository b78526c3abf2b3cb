"""Independent trainings side by side, one per rank, and what the ranks tell each other about them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from fds_dist.distributed.mesh import Ranks

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_batches(ranks: Ranks, jobs: Sequence[Job], run: Callable[[Job], Result]) -> Iterator[list[tuple[Job, Result]]]:
    """Runs as many jobs at a time as there are ranks; yields each batch in the jobs' order, on all ranks."""
    for first in range(0, len(jobs), ranks.world_size):
        batch = jobs[first : first + ranks.world_size]
        mine = run(batch[ranks.rank]) if ranks.rank < len(batch) else None
        results = ranks.gather_objects(mine)[: len(batch)]
        yield list(zip(batch, results, strict=True))  # type: ignore[arg-type]
