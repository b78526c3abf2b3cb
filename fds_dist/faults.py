"""Mistakes in the user's input, as values: they are collected, so that all of them are reported at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One mistake in the user's input."""

    key: str
    """Dotted key as the user would type it, e.g. `hyperparameters.lr.buckets`; "" where none fits."""

    problem: str
    """What is wrong, with the value: "0 is out of range", "unknown key"."""

    expected: str = ""
    """What would be right: "a whole number of at least 1"."""

    suggestion: str = ""
    """The nearest valid name, e.g. `inner.epochs`."""

    def __str__(self) -> str:
        """One line, whatever the parts hold."""
        text = f"{self.key}: {self.problem}" if self.key else self.problem
        if self.expected:
            text += f"; expected {self.expected}"
        if self.suggestion:
            text += f"; did you mean {self.suggestion}?"
        return " ".join(text.split())


class UserError(Exception):
    """The user's input is wrong: the command line prints one line per fault and exits with status 2."""

    def __init__(self, faults: Iterable[Fault] | Fault) -> None:
        self.faults: tuple[Fault, ...] = (faults,) if isinstance(faults, Fault) else tuple(faults)
        super().__init__(self.faults)

    def __str__(self) -> str:
        """One line per fault."""
        return "\n".join(map(str, self.faults))
