"""Damage to files, as a disk, a crash or a hand does it: path → nothing."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

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
