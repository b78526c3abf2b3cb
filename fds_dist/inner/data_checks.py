"""Checks of a task's batches: before training, and of the batches of a run whose numbers are not finite."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import islice

from fds_dist.common.batch import Batch, samples_in
from fds_dist.common.faults import Fault, UserError
from fds_dist.inner.problem import Problem
from fds_dist.tasks.inspection import check_finite, same_batch
from fds_dist.tasks.sampled import DrawnTask

FIRST_ASKED = {"train_batches": (0, 0), "val_batches": (0,)}
"""The arguments with which the checks ask for batches: outer step and epoch."""


def call_text(source: str, *arguments: int) -> str:
    """`train_batches(outer_step=0, epoch=1)`."""
    named = zip(("outer_step", "epoch"), arguments, strict=False)
    return f"{source}({', '.join(f'{name}={value}' for name, value in named)})"


def check_repeatable(problem: Problem) -> None:
    """Asks twice for the first training and the first validation batch.

    Raises:
        UserError: the second is another one.
    """
    for source, arguments in FIRST_ASKED.items():
        first, again = (next(iter(problem.batches_of(source, *arguments)), None) for _ in range(2))
        if first is None:
            continue
        if again is None or not same_batch(first, again):
            text = f"{call_text(source, *arguments)} gives another batch when it is asked again"
            expected = "a function of its arguments and the seed alone"
            raise UserError(Fault(f"task.{source}", text, expected))


def smallest_train_batch(problem: Problem) -> tuple[str, Batch] | None:
    """The smallest training batch of the first epoch and where it is, if the task has them in a sequence."""
    batches = problem.task.train_batches(0, 0)
    if not isinstance(batches, (list, tuple)):
        return None
    return _smallest(problem, "train_batches", problem.batches_of("train_batches", 0, 0))


def smallest_val_batch(problem: Problem) -> tuple[str, Batch] | None:
    """The smallest validation batch of outer step 0 and where it is, after all of them are seen to be finite.

    None for tasks whose batches are drawn by this package: these have no smaller batch that matters.
    """
    if isinstance(problem.task, DrawnTask):
        return None
    return _smallest(problem, "val_batches", problem.batches_of("val_batches", 0))


def _smallest(problem: Problem, source: str, batches: Iterable[Batch]) -> tuple[str, Batch] | None:
    """None where that is the first one."""
    smallest: tuple[str, Batch] | None = None
    fewest = math.inf
    for position, batch in enumerate(batches):
        where = f"batch {position} of {call_text(source, *FIRST_ASKED[source])}"
        check_finite(batch, f"task.{source}", where, problem.dtype)
        if (samples := samples_in(batch)) < fewest:
            fewest, smallest = samples, (where, batch) if position else None
    return smallest


def check_run_data(problem: Problem, number: int, steps: int) -> None:
    """The batches of an inner run whose numbers are not finite: the first `steps` of training, then the validation's.

    All ranks of the run see the same batches, and so decide alike.

    Args:
        number: of the outer step whose batches the run has.

    Raises:
        UserError: a batch is not finite; names it, the tensor, the sample and the feature.
    """
    per_epoch = problem.task.steps_per_epoch
    for step, batch in enumerate(islice(problem.batches(number), steps)):
        epoch, position = divmod(step, per_epoch)
        where = f"batch {position} of {call_text('train_batches', number, epoch)}"
        check_finite(batch, "task.train_batches", where, problem.dtype)
    for position, batch in enumerate(problem.batches_of("val_batches", number)):
        where = f"batch {position} of {call_text('val_batches', number)}"
        check_finite(batch, "task.val_batches", where, problem.dtype)
