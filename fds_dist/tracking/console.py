"""The console: a live line and a growing table in a terminal, plain lines in a log file."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fds_dist.common.console import PLAIN_INTERVAL, is_live, plain_line
from fds_dist.common.words import counted, duration, percent
from fds_dist.tracking.closing import closing_facts, result_files
from fds_dist.tracking.pace import Pace
from fds_dist.tracking.records import InnerBlock, OuterRecord, RunEnd, RunStart
from fds_dist.tracking.trackers import Tracker
from fds_dist.tracking.value_text import metrics_text, named, packed, spread_lines

PLAIN_WIDTH = 60
"""Characters for the buckets of one hyperparameter in output that is not a terminal."""

NOTEBOOK_RATE = 2
"""Live lines per second in a notebook, at most. They are drawn between inner steps: a thread would swallow prints."""

_COLUMNS = (("step", 4), ("horizon", 7), ("val loss", 9), ("acc", 6), ("time", 6))
_COLORS = {"finished": "green", "failed": "red", "interrupted": "yellow"}


class ConsoleTracker(Tracker):
    """In a terminal: a header, a live line, a row per outer step and a closing panel that begins with what was gained,
    and with the file to use. Elsewhere: plain ASCII lines.

    Outer steps are numbered as in ``history.jsonl``, from 0. Texts are printed literally: brackets in a path or a
    message are not markup.

    Args:
        console: where to print; standard output by default.
        clock: seconds, monotonic.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console or Console()
        self._clock = clock
        self._terminal = is_live(self._console)
        self._live: Live | None = None
        self._pace: Pace | None = None
        self._next_line = -math.inf

    def start(self, run: RunStart) -> None:
        self._run = run
        self._outer_step = run.first_outer_step
        self._block: InnerBlock | None = None
        self._pace = Pace(run.work, run.judging, self._clock()) if run.work else None
        facts = {
            "run folder": str(run.run_dir),
            "device": f"{run.device}, {counted(run.world_size, 'rank')}",
            "tangents": str(run.tangents),
            "outer steps": f"{run.outer_steps}" + (f", resumed at {run.first_outer_step}" if run.resumed else ""),
        }
        if not self._terminal:
            self._line("fds-dist: " + "; ".join(f"{name} {fact}" for name, fact in facts.items()))
            return
        self._console.print(Text("fds-dist", "bold"), _facts(facts), "")
        self._console.print(_row(*(name for name, _ in _COLUMNS), "hyperparameters", style="dim"))
        self._live = Live(
            get_renderable=self._progress,
            console=self._console,
            refresh_per_second=2,
            auto_refresh=not self._console.is_jupyter,
            transient=True,
        )
        self._live.start()

    def inner(self, block: InnerBlock) -> None:
        now = self._clock()
        if self._pace is not None:
            self._pace.add(now, block)
        self._block = block
        if self._live is not None and self._console.is_jupyter and now >= self._next_line:
            self._next_line = now + 1 / NOTEBOOK_RATE
            self._live.refresh()
        if not self._terminal and now >= self._next_line:
            self._next_line = now + PLAIN_INTERVAL
            place = f"outer step {block.outer_step}, inner step {block.steps.stop}/{block.horizon}"
            self._line(f"{place}: {', '.join(self._pace_facts(block))}")

    def outer(self, record: OuterRecord) -> None:
        if self._pace is not None:
            self._pace.end(self._clock(), record.outer_step)
        self._block, self._outer_step = None, record.outer_step + 1
        loss, accuracy, seconds = f"{record.val_loss:.4g}", percent(record.val_accuracy), duration(record.seconds)
        if self._live is None:
            values = (named(name, buckets, PLAIN_WIDTH, "x", "...") for name, buckets in record.hyperparameters.items())
            metrics = "".join(f"{text}, " for text in metrics_text(record))
            results = f"horizon {record.horizon}, val loss {loss}, val accuracy {accuracy}, {metrics}{seconds}"
            self._line(f"outer step {record.outer_step} done: {'; '.join([results, *values])}")
            return
        room = max(20, self._console.width - sum(width + 2 for _, width in _COLUMNS))
        values = "\n".join([*packed(record.hyperparameters, room), *spread_lines(record), *metrics_text(record)])
        self._above_live(_row(str(record.outer_step), str(record.horizon), loss, accuracy, seconds, values))

    def note(self, message: str) -> None:
        """Prints the message at once, above the live line."""
        if self._terminal:
            self._above_live(Padding(Text.assemble(("note: ", "yellow"), message, overflow="fold"), (0, 1)))
        else:
            self._line(f"note: {message}")

    def finish(self, end: RunEnd) -> None:
        if self._live is not None:
            self._live.stop()
        facts = closing_facts(end)
        if not self._terminal:
            files = f"{end.run_dir} ({', '.join(result_files(end))})" if end.schedule else str(end.run_dir)
            facts = {name: fact.replace("\n", "; ") for name, fact in facts.items()} | {"results": files}
            self._line("; ".join([end.status, *(f"{name}: {fact}" for name, fact in facts.items())]))
            for name, line in end.next_steps.items():
                self._line(f"to {name}: {line}")
            return
        if end.schedule:
            learned = "\n".join(packed(end.schedule, max(20, self._console.width - 18)))
            last = {name: facts.pop(name) for name in ("judged", "best") if name in facts}
            facts |= {"learned": learned} | last
            width = max(map(len, result_files(end)))
            lines = [f"{file:<{width}}  {holds}" for file, holds in result_files(end).items()]
            facts["results"] = "\n".join([str(end.run_dir), *lines])
        color = _COLORS.get(end.status, "none")
        title = Text(end.status, f"bold {color}")
        self._console.print("", Panel(_facts(facts), title=title, title_align="left", border_style=color))
        width = max(map(len, end.next_steps), default=0)
        for name, line in end.next_steps.items():  # below the panel and unbroken, so that they can be copied
            self._console.print(Text.assemble((f"   {name:<{width}}  ", "dim"), line), soft_wrap=True)

    def _line(self, text: str) -> None:
        plain_line(self._console, text)

    def _above_live(self, renderable: RenderableType) -> None:
        if self._live is not None:
            self._live.refresh()  # otherwise printing would repeat the live line of the last refresh
        self._console.print(renderable)

    def _progress(self) -> RenderableType:
        """The live lines. rich's refresh thread also calls this, so the state is read only once."""
        block, outer_step = self._block, self._outer_step
        if outer_step >= self._run.outer_steps:
            return Text()
        label = f" outer step {outer_step} ({outer_step + 1} of {self._run.outer_steps})"
        if block is None:
            return Text(label)
        line = Table.grid(padding=(0, 1), expand=True)
        line.add_column(no_wrap=True)
        line.add_column(ratio=1)
        line.add_column(no_wrap=True)
        bar = ProgressBar(total=block.horizon, completed=block.steps.stop, complete_style="cyan")
        line.add_row(label, bar, f"{block.steps.stop}/{block.horizon} ")
        facts = " · ".join(self._pace_facts(block))
        return Group("", line, Text(f" {facts}", style="dim", no_wrap=True, overflow="ellipsis"))

    def _pace_facts(self, block: InnerBlock) -> list[str]:
        facts = [f"{block.live_tangents}/{self._run.tangents} tangents live", f"loss {block.train_loss:.3g}"]
        pace = self._pace
        if pace is None or not pace.is_measured:
            return facts
        left, later = max(0.0, pace.left(block) - (self._clock() - pace.last)), pace.later(block.outer_step)
        run = [f"run about {duration(left + later)}"] if later else []
        rate = [] if pace.rate is None else [f"{pace.rate:.3g} steps/s"]
        return [*facts, *rate, f"{duration(left)} left", *run]


def _row(*cells: str, style: str = "none") -> Table:
    """A row of the table. Rows are printed one by one, so the widths are fixed."""
    row = Table.grid(padding=(0, 2, 0, 0))
    for _, width in _COLUMNS:
        row.add_column(width=width, justify="right", no_wrap=True)
    row.add_column(overflow="fold")
    row.add_row(*(Text(cell, style) for cell in cells))
    return row


def _facts(facts: Mapping[str, str]) -> Padding:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    for name, fact in facts.items():
        grid.add_row(Text(name), Text(fact))
    return Padding(grid, (0, 1))
