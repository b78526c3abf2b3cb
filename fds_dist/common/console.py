"""The console that commands print to: running text, tables, and the progress of long work."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from io import StringIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from fds_dist.common.words import duration

PIPE_WIDTH = 140
"""Columns of a table where there is no terminal; running text is not broken there."""
HTML = '<pre style="white-space: pre; overflow-x: auto; line-height: normal; font-family: monospace">{code}</pre>'
"""Around what a notebook shows of a result."""
Count = Callable[[int, int], None]
"""Hears (things done, all things)."""
PLAIN_INTERVAL = 10.0
"""Least seconds between two progress lines where there is no terminal."""


def default_console() -> Console:
    """Standard output; wide enough for the tables where it is a file or a pipe."""
    console = Console(highlight=False)
    return console if console.is_terminal or console.is_jupyter else Console(width=PIPE_WIDTH, highlight=False)


def is_live(console: Console) -> bool:
    """Whether lines can be redrawn: a terminal that knows more than ASCII, or a notebook with ipywidgets."""
    if console.is_jupyter:
        return find_spec("ipywidgets") is not None
    return console.is_interactive and not console.options.ascii_only


def paragraph(console: Console, text: str) -> None:
    """Prints running text, broken between words in a terminal or notebook and not at all elsewhere."""
    console.print(text, soft_wrap=not (console.is_terminal or console.is_jupyter))


def plain_line(console: Console, text: str) -> None:
    """Prints `text` as it is: no markup, no line breaks added."""
    console.print(Text(text), soft_wrap=True)


def as_html(draw: Callable[[Console], object]) -> str:
    """What `draw` prints, for a notebook's `_repr_html_`; all texts are escaped."""
    console = Console(file=StringIO(), record=True, force_jupyter=False, width=PIPE_WIDTH, highlight=False)
    draw(console)
    return console.export_html(code_format=HTML, inline_styles=True)


def plain_table(*headings: str) -> Table:
    """Columns of numbers without lines; texts in the first two columns are folded where they must, never cut."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for index, heading in enumerate(headings):
        text = index < 2
        table.add_column(heading, justify="right", no_wrap=not text, overflow="fold")
    return table


def progress_bar(console: Console) -> Progress:
    """A live bar that is gone when it stops; every task needs a field `facts`, which stands at the bar's end."""
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[facts]}", style="dim"),
    )
    return Progress(
        *columns,
        console=console,
        transient=True,
        refresh_per_second=4,
        redirect_stdout=not console.stderr or sys.stdout.isatty(),  # what a command prints to a file stays there
    )


def count_nothing(done: int, total: int) -> None:
    """Shows nothing: a `Count` for work without progress."""


@contextmanager
def counting(
    what: str,
    things: str,
    console: Console | None = None,
    clock: Callable[[], float] = time.monotonic,
    show: bool = True,
) -> Iterator[Count]:
    """Shows the progress of long work: a bar in a terminal, elsewhere a line every `PLAIN_INTERVAL` seconds.

    Args:
        what: the work, such as `noise`.
        things: what is counted, such as `runs`.
        console: where to print; standard output by default.
        clock: seconds, monotonic.
        show: False prints nothing.

    Yields:
        A function to call with (things done, all things).
    """
    if not show:
        yield count_nothing
        return
    console = console or default_console()
    if is_live(console):
        with progress_bar(console) as bar:
            task = bar.add_task(f"{what}: {things}", total=None, facts="")
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    last_time, last_done = clock(), 0

    def report(done: int, total: int) -> None:
        nonlocal last_time, last_done
        seconds = clock() - last_time
        if seconds < PLAIN_INTERVAL or done <= last_done:
            return
        left = duration(seconds / (done - last_done) * (total - done))
        plain_line(console, f"{what}: {done} of {total} {things} done, about {left} left")
        last_time, last_done = clock(), done

    yield report
