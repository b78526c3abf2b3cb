"""Random numbers keyed by what they are for, never by rank or by how many were drawn before.

Every rank that asks for the same keys gets the same numbers, so data order, splits and initial weights agree without a
word on the network, and a resumed run draws what the uninterrupted one would have drawn.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


def derive_seed(*keys: int | str) -> int:
    """A 63-bit seed from a list of keys, e.g. ``derive_seed(seed, "split", outer_step)``.

    It is the head of the SHA-256 of the keys, hence the same over platforms, Python versions and ranks; ``1`` and
    ``"1"`` are different keys, and so are ``("ab", "c")`` and ``("a", "bc")``.
    """
    digest = hashlib.sha256(json.dumps(keys).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*keys: int | str) -> torch.Generator:
    """A CPU generator seeded with ``derive_seed(*keys)``."""
    return torch.Generator().manual_seed(derive_seed(*keys))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within the block torch's global generators start from ``seed``; afterwards they are as if nothing happened.

    For code that draws from the global generator, such as the constructors of ``torch.nn``.
    """
    # Listed by hand, as fork_rng warns where it has to find several GPUs; those not yet in use have no state to keep.
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def build_seeded(function: Callable[[int], nn.Module], seed: int) -> nn.Module:
    """``function(seed)`` with torch's global generators seeded too: a function that ignores its seed agrees on all
    ranks."""
    with seeded(seed):
        return function(seed)


def reinitialized(module: nn.Module, seed: int) -> nn.Module:
    """A copy of ``module`` with fresh weights: ``reset_parameters()`` of each submodule that has it, under ``seed``.

    Parameters of no such submodule keep their values. Torch's global generators are left as they were.
    """
    fresh = copy.deepcopy(module)
    with seeded(seed):
        for submodule in fresh.modules():
            reset = getattr(submodule, "reset_parameters", None)
            if callable(reset):
                reset()
    return fresh
