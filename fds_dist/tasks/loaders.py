"""What a `DataLoader` of a user's says about its data, and what of it this package cannot take over."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler

from fds_dist.common.faults import Fault, UserError
from fds_dist.tasks.sources import Collate, StreamSource

WAY_OUT = "a plain DataLoader(dataset, batch_size, shuffle=...), or a task of your own (see fds_dist.Task)"


def source_of(
    loader: DataLoader[Any], name: str, workers: int | None = None, collate: Collate | None = None
) -> StreamSource:
    """The loader's dataset, read by as many workers and put together by the same `collate_fn`.

    The order is left to the task, whose shuffling is a function of seed, outer step and epoch.

    Args:
        workers: in place of the loader's.
        collate: in place of the loader's `collate_fn`.

    Raises:
        UserError: the loader has another order than shuffled (for training) or in sequence; names it.
    """
    key, sampler = f"task.{name}", loader.sampler
    if isinstance(loader.dataset, IterableDataset):
        problem = (
            f"the DataLoader's {type(loader.dataset).__name__} is an iterable dataset, which has no order to choose"
        )
        expected = "steps_per_epoch=" if name == "train" else "without a DataLoader one with a length"
        raise UserError(Fault(key, problem, f"a map-style dataset, or {expected}"))
    if loader.batch_size is None:
        raise UserError(Fault(key, f"the DataLoader has a {type(loader.batch_sampler).__name__} of its own", WAY_OUT))
    is_shuffled, samples = isinstance(sampler, RandomSampler), len(loader.dataset)  # type: ignore[arg-type]
    if isinstance(sampler, RandomSampler) and (sampler.replacement or sampler.num_samples != samples):
        problem = f"the DataLoader's RandomSampler draws {sampler.num_samples} of {samples} samples"
        raise UserError(Fault(key, problem + (" with replacement" if sampler.replacement else ""), WAY_OUT))
    if not (is_shuffled or isinstance(sampler, SequentialSampler)):
        raise UserError(Fault(key, f"the DataLoader's sampler is a {type(sampler).__name__}", WAY_OUT))
    if name == "train" and not is_shuffled:
        problem = "the DataLoader does not shuffle, and each epoch of training is a permutation"
        raise UserError(Fault(key, problem, "shuffle=True, or a task of your own (see fds_dist.Task)"))
    if not samples:
        raise UserError(Fault(key, "the dataset is empty", "at least one (x, y) pair"))
    return StreamSource(
        loader.dataset,
        loader.num_workers if workers is None else workers,
        name,
        collate=collate or loader.collate_fn,
        worker_init=loader.worker_init_fn,
    )
