"""Independent trainings side by side, one per rank, and what the ranks tell each other about them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch.distributed as dist

from fds_dist.distributed.mesh import Ranks
from fds_dist.faults import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")


def gather(ranks: Ranks, value: Result) -> list[Result]:
    """Each rank's `value`, in rank order, on all ranks."""
    if ranks.mesh is None:
        return [value]
    values: list[Result | None] = [None] * ranks.world_size
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def on_first_rank(ranks: Ranks, make: Callable[[], Result]) -> Result:
    """`make()` of rank 0 on every rank; its `UserError` is raised on every rank too."""
    outcome: tuple[Result | None, UserError | None] = (None, None)
    if ranks.is_first:
        try:
            outcome = make(), None
        except UserError as error:
            outcome = None, error
    value, error = ranks.broadcast_object(outcome)  # type: ignore[misc]
    if error is not None:
        raise error
    return value


def in_batches(ranks: Ranks, jobs: Sequence[Job], run: Callable[[Job], Result]) -> Iterator[list[tuple[Job, Result]]]:
    """Runs as many jobs at a time as there are ranks; yields each batch in the jobs' order, on all ranks."""
    for first in range(0, len(jobs), ranks.world_size):
        batch = jobs[first : first + ranks.world_size]
        mine = run(batch[ranks.rank]) if ranks.rank < len(batch) else None
        results = gather(ranks, mine)[: len(batch)]
        yield list(zip(batch, results, strict=True))  # type: ignore[arg-type]
