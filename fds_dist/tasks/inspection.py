"""What is wrong with the numbers of a batch, in words."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from fds_dist.common.batch import Batch, named_leaves, tensors_in
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.words import plural

FINITE = "finite numbers: leave such samples out, or fill them in"


def check_finite(batch: Batch, key: str, where: str, dtype: torch.dtype | None = None) -> None:
    """That a batch has neither NaN nor infinity.

    Args:
        key: `task.train_batches`.
        where: `batch 3 of train_batches(outer_step=0, epoch=1)`.
        dtype: in which the floating-point numbers are used; None: as they are.

    Raises:
        UserError: naming the tensor by its path, the sample and the feature.
    """
    if not any(non_finite(tensor, dtype) for tensor in tensors_in(batch)):
        return
    for name, leaf in named_leaves(batch):
        if isinstance(leaf, Tensor) and (problem := non_finite(leaf, dtype)):
            raise UserError(Fault(key, f"{where}: {problem} of the {name}", FINITE))


def non_finite(values: Tensor, dtype: torch.dtype | None = None) -> str:
    """`2 of 120 numbers are NaN or infinite, first NaN in sample 3, column 2`; "" where all of `values` [B, ...] are
    finite."""
    if not values.is_floating_point():
        return ""
    used = values if dtype is None else values.to(dtype)
    if bool(torch.isfinite(used).all()):
        return ""
    wrong = (~torch.isfinite(used)).nonzero()
    first = wrong[0].tolist()
    kind = "NaN" if math.isnan(used[tuple(first)].item()) else "infinity"
    verb = "is" if len(wrong) == 1 else "are"
    count = f"{len(wrong):,} of {values.numel():,} {plural(values.numel(), 'number')} {verb} NaN or infinite"
    return f"{count}, first {kind} in {_place(first)}"


def _place(index: list[int]) -> str:
    """`sample 3, column 2`, `sample 3, index [0, 5, 6]`."""
    if not index:
        return "its only number"
    sample, *feature = index
    if not feature:
        return f"sample {sample}"
    return f"sample {sample}, column {feature[0]}" if len(feature) == 1 else f"sample {sample}, index {feature}"


def same_batch(one: Batch, other: Batch) -> bool:
    """Whether two batches have the same structure and equal leaves, NaN being the same as NaN."""
    (leaves, structure), (others, structure_of_other) = tree_flatten(one), tree_flatten(other)
    return structure == structure_of_other and all(map(_same_leaf, leaves, others))


def _same_leaf(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return same_tensor(one, other)
    return type(one) is type(other) and bool(one == other or one != one)


def same_tensor(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same shape, type and numbers, NaN being the same as NaN."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())
