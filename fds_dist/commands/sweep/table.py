"""The results of a local sweep as a table, the best first."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fds_dist.commands.sweep.file import Sweep
from fds_dist.commands.sweep.local import JobResult
from fds_dist.common.console import default_console
from fds_dist.common.words import duration, number_text


def print_results(sweep: Sweep, results: Sequence[JobResult], console: Console | None = None) -> None:
    """One row per job; jobs that failed come last."""
    table = Table(title=escape(sweep.name), title_justify="left")
    for name in ("job", *(parameter.name for parameter in sweep.parameters)):
        table.add_column(escape(name), justify="right", overflow="fold")
    for name in ("validation loss", "accuracy", "time", "status"):
        table.add_column(name, justify="right")
    for result in sorted(results, key=lambda result: _rank(sweep, result)):
        values = [_short(value) for value in result.values.values()]
        figures = [_short(result.best_val_loss), _short(result.best_val_accuracy), duration(result.seconds)]
        table.add_row(str(result.job + 1), *values, *figures, result.status)
    (console or default_console()).print(table)


def _rank(sweep: Sweep, result: JobResult) -> tuple[bool, float]:
    """The key for sorting: the accuracy if it is the sweep's metric, otherwise the loss."""
    metric = (sweep.content.get("metric") or {}).get("name", "")
    figure = result.best_val_loss
    if metric.endswith("val_accuracy") and result.best_val_accuracy is not None:
        figure = -result.best_val_accuracy
    return not result.finished, float("inf") if figure is None else figure


def _short(value: object) -> str:
    return number_text(value) if value is None or isinstance(value, float) else escape(str(value))
