"""Random numbers keyed by what they are for, never by rank or by how many were drawn before.

Every rank that asks for the same keys gets the same numbers, so data order, splits and initial weights agree without a
word on the network, and a resumed run draws what the uninterrupted one would have drawn.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

Item = TypeVar("Item")


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
    """Within the block the global generators of torch, numpy and Python start from ``seed``; afterwards they are as if
    nothing happened.

    For code that draws from global generators, such as the constructors of ``torch.nn``.
    """
    # Listed by hand, as fork_rng warns where it has to find several GPUs; those not yet in use have no state to keep.
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices), _GlobalStreams(seed):
        torch.default_generator.manual_seed(seed)
        if torch.backends.cuda.is_built():
            torch.cuda.manual_seed_all(seed)
        yield


def seed_generators(seed: int, device: torch.device) -> None:
    """Seeds the global generators that a network on `device` draws from.

    `torch.manual_seed` would also visit the devices that are not in use, and write down the stack for each kind of
    them: 0.3 ms a call, and more from deep within a program.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def random_state(device: torch.device) -> torch.Tensor:
    """The state of the global generators that a network on `device` draws from, as bytes."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return torch.cat(states)


def keyed(items: Callable[[], Iterable[Item]], *keys: int | str) -> Iterator[Item]:
    """The items of ``items()``, whose draws from the global generators of torch (CPU), numpy and ``random`` depend on
    the keys alone. Whoever takes the items meets these generators as if nothing was drawn.

    For code of a user's own that draws by itself, such as a `DataLoader` that shuffles.
    """
    streams = _GlobalStreams(derive_seed(*keys))
    with streams:
        iterator = iter(items())
    while True:
        with streams:
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item


def drawing(seed: int) -> AbstractContextManager[None]:
    """Within the block the global generators of torch (CPU), numpy and ``random`` start from ``seed``; afterwards they
    are as if nothing was drawn."""
    return _GlobalStreams(seed)


class _GlobalStreams:
    """The global CPU generators, seeded at first, as they are within blocks; outside they are the caller's."""

    def __init__(self, seed: int) -> None:
        torch_state = torch.Generator().manual_seed(seed).get_state()
        numpy_state = np.random.RandomState(seed % 2**32).get_state()
        self._inside: Any = torch_state, numpy_state, random.Random(seed).getstate()
        self._outside: Any = None

    def __enter__(self) -> None:
        self._outside = self._swap(self._inside)

    def __exit__(self, *error: object) -> None:
        self._inside = self._swap(self._outside)

    @staticmethod
    def _swap(states: Any) -> Any:
        before = torch.get_rng_state(), np.random.get_state(), random.getstate()
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
        return before


def build_seeded(function: Callable[[int], nn.Module], seed: int) -> nn.Module:
    """``function(seed)`` with the global generators seeded too: one that ignores its seed agrees on all ranks."""
    with seeded(seed):
        return function(seed)
