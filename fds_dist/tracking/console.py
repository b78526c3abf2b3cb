"""The console: a live line and a growing table in a terminal, plain lines in a log file."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from itertools import islice

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fds_dist.common.console import PLAIN_INTERVAL, is_live, plain_line
from fds_dist.common.values import MOST_SHOWN, Row, flat, numbers_of, text_of
from fds_dist.common.words import counted, duration, number_text, percent
from fds_dist.tracking.pace import Pace
from fds_dist.tracking.records import InnerBlock, OuterRecord, RunEnd, RunStart
from fds_dist.tracking.trackers import Tracker
from fds_dist.tracking.verdict import DESCRIBED

SCHEDULE = "schedule.json"
"""The file of the result in a run's folder."""

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
            values = (
                _named(name, buckets, PLAIN_WIDTH, "x", "...") for name, buckets in record.hyperparameters.items()
            )
            metrics = "".join(f"{text}, " for text in _metrics(record))
            results = f"horizon {record.horizon}, val loss {loss}, val accuracy {accuracy}, {metrics}{seconds}"
            self._line(f"outer step {record.outer_step} done: {'; '.join([results, *values])}")
            return
        room = max(20, self._console.width - sum(width + 2 for _, width in _COLUMNS))
        values = "\n".join([*_pack(record.hyperparameters, room), *_spread_lines(record), *_metrics(record)])
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
        facts = _closing_facts(end)
        if not self._terminal:
            files = f"{end.run_dir} ({', '.join(_files(end))})" if end.schedule else str(end.run_dir)
            facts = {name: fact.replace("\n", "; ") for name, fact in facts.items()} | {"results": files}
            self._line("; ".join([end.status, *(f"{name}: {fact}" for name, fact in facts.items())]))
            for name, line in end.next_steps.items():
                self._line(f"to {name}: {line}")
            return
        if end.schedule:
            learned = "\n".join(_pack(end.schedule, max(20, self._console.width - 18)))
            last = {name: facts.pop(name) for name in ("judged", "best") if name in facts}
            facts |= {"learned": learned} | last
            width = max(map(len, _files(end)))
            lines = [f"{file:<{width}}  {holds}" for file, holds in _files(end).items()]
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
        if pace is None or pace.rate is None:
            return facts
        left, later = max(0.0, pace.left(block) - (self._clock() - pace.last)), pace.later(block.outer_step)
        run = [f"run about {duration(left + later)}"] if later else []
        return [*facts, f"{pace.rate:.3g} steps/s", f"{duration(left)} left", *run]


def _pack(values: Mapping[str, Row], width: int) -> list[str]:
    """The buckets of all hyperparameters in lines of at most `width` characters, several per line if they fit."""
    lines: list[str] = []
    for name, buckets in values.items():
        text = _named(name, buckets, width)
        if lines and len(lines[-1]) + len(text) + 3 <= width:
            lines[-1] += f" · {text}"
        else:
            lines.append(text)
    return lines


def _named(name: str, buckets: Row, width: int, times: str = "×", gap: str = "…") -> str:
    """'lr 0.1 0.05 … 0.001': three significant digits, without the middle if `width` is too small."""
    numbers = [text_of(value) for value in buckets]
    if len(buckets) > 1 and len(set(map(tuple, map(numbers_of, buckets)))) == 1:
        return f"{name} {numbers[0]} {times}{len(buckets)}"
    text = " ".join([name, *numbers])
    visible = len(numbers)
    while len(text) > width and visible > 2:
        visible -= 1
        text = " ".join([name, *numbers[: visible - visible // 2], gap, *numbers[-(visible // 2) :]])
    return text


def _spread_lines(record: OuterRecord) -> list[str]:
    """A line per hyperparameter: mean hypergradients over the replicas ± the standard deviation of one replica, of its
    first `MOST_SHOWN` numbers."""
    lines = []
    for name, sigmas in (record.hypergradient_spread or {}).items():
        pairs = zip(flat(record.hypergradients[name]), flat(sigmas), strict=True)
        numbers = [f"{mean:.2g}±{sigma:.1g}" for mean, sigma in islice(pairs, MOST_SHOWN)]
        lines.append(" ".join([f"d/d {name}:", *numbers]))
    return lines


def _metrics(record: OuterRecord) -> list[str]:
    """The task's own metrics of the validation data: `f1 0.8312`."""
    return [f"{name} {number_text(value)}" for name, value in (record.metrics or {}).items()]


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


def _closing_facts(end: RunEnd) -> dict[str, str]:
    """What the closing lines say of the search: what was gained, what to use, and what that rests on."""
    facts = {"message": end.message}
    if end.verdict is not None:
        facts["gained"] = end.verdict.headline
    if end.status == "finished" and end.schedule:
        judged = "" if end.verdict else ", which nothing has judged (outer.judge_seeds)"
        facts["use"] = f"{SCHEDULE}: {DESCRIBED.get(end.result or '', 'the learned values')}{judged}"
    if end.verdict is not None:
        facts["judged"] = "\n".join(f"{name} {candidate}" for name, candidate in end.verdict.candidates.items())
    facts["best"] = _best(end)
    return {name: fact for name, fact in facts.items() if fact}


def _files(end: RunEnd) -> dict[str, str]:
    """The files in the run's folder that a person may want → what they hold."""
    files = {SCHEDULE: DESCRIBED.get(end.result or "", "the learned values")}
    candidates = {f"schedule_{name}.json": holds for name, holds in DESCRIBED.items()}
    files |= {file: holds for file, holds in candidates.items() if (end.run_dir / file).is_file()}
    return files | {"history.jsonl": "every outer step"} | dict.fromkeys(_report(end), "figures")


def _best(end: RunEnd) -> str:
    facts = []
    if end.best_val_accuracy is not None:
        facts.append(f"val accuracy {percent(end.best_val_accuracy)}")
    if end.best_val_loss is not None:
        facts.append(f"val loss {end.best_val_loss:.4g}")
    if end.best_outer_step is not None:
        facts.append(f"at outer step {end.best_outer_step}")
    return ", ".join(facts)


def _report(end: RunEnd) -> list[str]:
    """The path of the report's page within the run's folder; none without a report."""
    return [] if end.report is None else [end.report.relative_to(end.run_dir).as_posix()]
