"""Damage to files, as a disk, a crash or a hand does it: path → nothing."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Damage = Callable[[Path], None]


def bit_flips(size: int, count: int, seed: int = 0) -> Iterator[Damage]:
    """`count` flips of one bit each, at places spread evenly over `size` bytes."""
    draw = random.Random(seed)
    for index in range(count):
        place = (index * size + draw.randrange(size)) // count
        yield flip(place, 1 << draw.randrange(8))


def flip(place: int, mask: int) -> Damage:
    """Flips the bits of `mask` in one byte."""

    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[place] ^= mask
        path.write_bytes(bytes(content))

    return damage


def cut(share: float) -> Damage:
    """Leaves the first part of the file."""

    def damage(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])

    return damage


def content(replacement: bytes) -> Damage:
    """Replaces the content."""

    def damage(path: Path) -> None:
        path.write_bytes(replacement)

    return damage


def folder_instead(path: Path) -> None:
    """Puts a folder in place of the file."""
    path.unlink()
    path.mkdir()


def gone(path: Path) -> None:
    """Removes the file."""
    path.unlink()


DEEP = b"[" * 100_000 + b"]" * 100_000
"""JSON that is nested 100,000 deep."""

WRONG: list[Any] = [None, "x", -1, 1.5, True, [], {}, [["x"]], {"x": [1]}, math.nan, math.inf, 10**400]
"""One of them is wrong wherever something else stands."""


def mutations(values: Any) -> Iterator[tuple[str, Any]]:
    """`values` with each part replaced by each of `WRONG`, and with each key or item left out; with what was done."""
    for path in _paths(values):
        place = ".".join(map(str, path)) or "all"
        for wrong in WRONG:
            yield (
                f"{place} as {str(wrong)[:12]}",
                _changed(values, path, lambda parent, key, wrong=wrong: _put(parent, key, wrong)),
            )
        if path:
            yield f"no {place}", _changed(values, path, lambda parent, key: parent.pop(key))


def _paths(values: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield above
    if isinstance(values, dict | list):
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield from _paths(value, (*above, key))


def _put(parent: Any, key: Any, value: Any) -> None:
    parent[key] = value


def _changed(values: Any, path: tuple[Any, ...], change: Callable[[Any, Any], object]) -> Any:
    box = copy.deepcopy([values])
    parent: Any = box
    for key in (keys := (0, *path))[:-1]:
        parent = parent[key]
    change(parent, keys[-1])
    return box[0]
