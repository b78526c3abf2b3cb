"""Fingerprints of tensors: equal bits give equal fingerprints on any device and with any number of threads."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from fds_dist.common.batch import Batch, named_leaves, tensors_in
from fds_dist.common.words import plural

_INTEGER_OF_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

BLOCK = 2**20
"""Elements that are hashed at once: 64-bit numbers for all of a large network would take several times its memory."""


def fingerprint(tensor: Tensor) -> Tensor:
    """A 0-d int64 tensor on `tensor`'s device, a hash of its bits by position.

    Integer sums modulo 2^64 do not depend on their order, so threads and devices do not matter. Each element adds a
    one-to-one function of its bits: a change of one element is always seen, a change of several with probability
    1 - 2^-64.
    """
    flat = tensor.detach().reshape(-1)
    flat = torch.view_as_real(flat.resolve_conj()).reshape(-1) if flat.is_complex() else flat
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    for first, part in zip(range(0, len(flat), BLOCK), flat.split(BLOCK), strict=False):
        bits = part.view(_INTEGER_OF_SIZE[flat.element_size()]).to(torch.int64)
        positions = torch.arange(first + 1, first + len(part) + 1, device=flat.device)
        total += _mix(bits + positions * -0x61C8864680B583EB).sum()
    return total


def batch_fingerprint(batch: Batch, device: torch.device) -> Tensor:
    """[2] int64 on `device`: a hash of a batch's structure and plain leaves, and one of its tensors' bits in order."""
    leaves = [(name, leaf) for name, leaf in named_leaves(batch)]
    shown = [(name, leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else (name, leaf) for name, leaf in leaves]
    prints = torch.stack([fingerprint(tensor.to(device)) for tensor in tensors_in(batch)])
    return torch.stack([prints.new_tensor(zlib.crc32(repr(shown).encode())), fingerprint(prints)])


def _mix(x: Tensor) -> Tensor:
    """SplitMix64 (Steele, Lea and Flood, 2014). It is one-to-one and gives unrelated results for neighboring numbers,
    so that small opposite changes of two elements do not cancel in a sum."""
    x = (x ^ _shifted(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _shifted(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """`x` shifted to the right as an unsigned number, without copies of the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


_KERNELS = (
    ", and take the same kernels (a custom CUDA operator may add in another order each time, and a rank short of "
    "memory takes another algorithm)"
)


class RunsDiverged(RuntimeError):
    """Ranks that must replay one primal run bit for bit have different weights."""

    def __init__(
        self,
        step: int,
        ranks: Sequence[int],
        last_agreed: int | None,
        on_gpus: bool = False,
        non_finite: bool = False,
    ) -> None:
        """`non_finite`: the weights of `ranks` are not finite, and those of the others are."""
        self.step, self.ranks = step, tuple(ranks)
        since = "" if last_agreed is None else f"; they were still the same at step {last_agreed}"
        how = "are not finite, unlike the other ranks'," if non_finite else "differ from the other ranks'"
        way_out = "" if non_finite else "; consistency.mode=broadcast copies rank 0's weights"
        super().__init__(
            f"the weights of {plural(len(ranks), 'rank')} {', '.join(map(str, ranks))} {how} "
            f"at inner step {step}{since}. Every rank must see the same batches and random numbers "
            f"(a task may depend only on its arguments and the seed){_KERNELS if on_gpus else ''}{way_out}"
        )


def deviating_ranks(fingerprints: Sequence[int]) -> list[int]:
    """The ranks whose fingerprint is not the most common one (of equally common ones, that of rank 0 counts)."""
    counts = Counter(fingerprints)
    common = max(counts, key=lambda value: (counts[value], value == fingerprints[0]))
    return [rank for rank, value in enumerate(fingerprints) if value != common]
