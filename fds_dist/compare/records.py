"""What a search has done so far, in files that a later start reads back: one JSON object per line."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fds_dist.faults import Fault, UserError


@dataclass(frozen=True)
class Trial:
    """One inner run of a method: an outer step of a gradient method, a trial of a black box."""

    number: int
    values: list[float]
    """[K] the λ it trained with."""
    val_loss: float
    """As the method saw it; infinite where the run diverged, and where a pruned run ended that early."""
    val_accuracy: float | None
    steps: int
    """Inner steps trained."""
    cost: float
    """In plain training steps."""
    seconds: float
    """Summed over the ranks that worked on it."""
    state: dict[str, Any] = field(default_factory=dict)
    """What the method needs to go on from here."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; an infinite loss is null."""
        return {**asdict(self), "val_loss": finite_or_none(self.val_loss)}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Trial:
        """The inverse of `to_dict`."""
        return cls(**{**content, "val_loss": loss_or_infinity(content["val_loss"])})


def finite_or_none(value: float) -> float | None:
    """A loss as JSON, which has no infinity."""
    return value if math.isfinite(value) else None


def loss_or_infinity(value: float | None) -> float:
    """A loss for comparing: whatever is not finite is infinitely bad."""
    return value if value is not None and math.isfinite(value) else math.inf


@dataclass(frozen=True)
class Record:
    """A file of JSON lines that only grows. Written by the first rank alone."""

    path: Path

    def read(self) -> list[dict[str, Any]]:
        """All whole lines; what a crash left of a last one is cut off.

        Raises:
            UserError: a line is no JSON object.
        """
        if not self.path.exists():
            return []
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self.path, whole)
        entries = []
        for number, line in enumerate(content[:whole].splitlines(), start=1):
            try:
                entry = json.loads(line)
            except ValueError:
                entry = None
            if not isinstance(entry, dict):
                problem = f"{self.path}, line {number} is not a record"
                raise UserError(Fault("", problem, "a file written by `fds-dist compare`; delete it to start over"))
            entries.append(entry)
        return entries

    def append(self, entries: Iterable[dict[str, Any]]) -> None:
        """Adds lines, all or (in a crash) a leading part of them, on disk before it returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write("".join(json.dumps(entry) + "\n" for entry in entries).encode())
            file.flush()
            os.fsync(file.fileno())
