"""The console that commands print to, and numbers in words."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table

PIPE_WIDTH = 140
"""Columns of a table where there is no terminal; running text is not broken there."""


def default_console() -> Console:
    """Standard output; wide enough for the tables where it is a file or a pipe."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(width=PIPE_WIDTH, highlight=False)


def paragraph(console: Console, text: str) -> None:
    """Running text, broken between words in a terminal and not at all elsewhere."""
    console.print(text, soft_wrap=not console.is_terminal)


def counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def plain_table(*headings: str) -> Table:
    """Columns of numbers without lines; texts in the first two columns are folded where they must, never cut."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for index, heading in enumerate(headings):
        text = index < 2
        table.add_column(heading, justify="right", no_wrap=not text, overflow="fold")
    return table


def runs_text(numbers: Sequence[int]) -> str:
    """Ascending numbers with neighbors drawn together: `0-2, 5`."""
    runs = [list(run) for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{run[0][1]}-{run[-1][1]}" if len(run) > 1 else str(run[0][1]) for run in runs)


def bytes_text(count: float) -> str:
    """A number of bytes in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def seconds_text(seconds: float) -> str:
    """A duration in the unit that suits it."""
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
