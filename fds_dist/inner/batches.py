"""The batches of a task as an inner run asks for them: checked, keyed, and from any step on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import count, islice

from fds_dist.common.batch import Batch, checked_batch
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.randomness import keyed
from fds_dist.tasks.base import Task
from fds_dist.tasks.in_memory import draws_nothing


def training_batches(task: Task, seed: int, outer_step: int, first_step: int = 0) -> Iterator[Batch]:
    """Training batches from inner step `first_step` on without end, epoch after epoch, as the task gives them.

    Raises:
        UserError: an epoch has fewer batches than `steps_per_epoch`, or gives what is no batch.
    """
    per_epoch = task.steps_per_epoch
    first_epoch, skip = divmod(first_step, per_epoch)
    for epoch in count(first_epoch):
        given, batches = 0, batches_of(task, seed, "train_batches", outer_step, epoch)
        if skip and draws_nothing(task):
            given, batches = skip, batches_of(task, seed, "train_batches_from", outer_step, epoch, skip)
        for batch in islice(batches, per_epoch - given):
            given += 1
            if given > skip:
                yield batch
        if given < per_epoch:
            problem = f"train_batches(outer_step={outer_step}, epoch={epoch}) gave {given} batches"
            raise UserError(Fault("task.train_batches", problem, f"at least steps_per_epoch = {per_epoch}"))
        skip = 0


def batches_of(task: Task, seed: int, source: str, *arguments: int) -> Iterator[Batch]:
    """The batches that the task's function `source` gives for `arguments`, each checked.

    What a task of a user's own draws from global generators depends on the seed and the arguments alone.

    Raises:
        UserError: it gives what is no batch (see `checked_batch`).
    """
    function: Callable[..., Iterable[object]] = getattr(task, source)
    if draws_nothing(task):  # to swap the generators takes as long as a tenth of a small network's step
        batches: Iterable[object] = function(*arguments)
    else:
        batches = keyed(lambda: function(*arguments), seed, source, *arguments)
    return (checked_batch(batch, source) for batch in batches)
