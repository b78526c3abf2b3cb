"""The facts and tables of a report."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple
from urllib.parse import quote

from fds_dist.commands.report.contents import RunContents, labels
from fds_dist.common.values import Row, flat
from fds_dist.common.words import ABSENT, bytes_text, counted, duration, number_text, percent
from fds_dist.storage.run_folder import RunFolder
from fds_dist.tracking.verdict import DESCRIBED

MOST_VALUES = 12
"""The most values of a hyperparameter that a table shows; `history.jsonl` has all of them."""


class Table(NamedTuple):
    """A table of the page."""

    name: str
    """What it shows, for those who hear the page."""
    headings: Sequence[str]
    rows: Sequence[Sequence[object]]
    """The first cell is the heading of its row; a `Link` leads to another page."""
    numbers: Collection[int] = ()
    """Columns that are aligned right."""
    best: int | None = None
    """The row that stands out."""


class Link(NamedTuple):
    """A text that leads to another page."""

    text: str
    address: str


def facts(run: RunContents) -> dict[str, str]:
    """The size of a search, and what its result came to on the test data."""
    named = {"outer steps": _done(run), "learned numbers": str(len(run.elements)), "time": duration(run.seconds)}
    if accuracies := run.retrained_accuracies:
        named[f"retrained test accuracy ({counted(len(accuracies), 'seed')})"] = percent(mean(accuracies))
    return named


def machine_facts(run: RunContents) -> dict[str, str]:
    """What a search ran on, and what it took."""
    records, weights = run.records, run.environment.get("weights")
    named = {
        "ranks": str(records[-1].world_size if records else run.environment.get("world_size", ABSENT)),
        "weights": f"{weights:,}" if isinstance(weights, int) else ABSENT,
        "training steps": f"{sum(record.horizon for record in records):,}",
    }
    if run.peak_bytes is not None:
        named["peak memory of a rank"] = bytes_text(run.peak_bytes)
    if (plan := run.plan()) and (tangents := run.tangent_bytes(plan)):
        named["tangents of a rank"] = bytes_text(max(tangents))
    return named


def verdict_table(run: RunContents) -> Table | None:
    """A row per candidate with its runs on the fresh seeds; that of the result stands out."""
    verdict = run.verdict
    if verdict is None:
        return None
    headings = ("candidate", "what it is", "validation loss", "standard error", "validation accuracy", "diverged")
    rows = [
        (
            f"{name} (result)" if name == verdict.result else name,
            DESCRIBED.get(name, ""),
            number_text(candidate.val_loss),
            number_text(candidate.val_loss_error, 2),
            percent(candidate.val_accuracy),
            f"{candidate.lost} of {verdict.seeds}",
        )
        for name, candidate in verdict.candidates.items()
    ]
    best = list(verdict.candidates).index(verdict.result)
    return Table("the candidates for the result", headings, rows, range(2, len(headings)), best)


def run_table(runs: Sequence[RunContents], folder: Path) -> Table:
    """A row per run, which leads from the page in `folder` to the run's own page where there is one."""
    headings = (
        *("run", "task", "model", "judged validation loss", "best validation loss", "at outer step"),
        "best validation accuracy",
        *("retrained test accuracy", "outer steps", "learned numbers", "ranks", "time", "peak memory"),
    )
    rows = []
    for label, run in zip(labels(runs), runs, strict=True):
        best, accuracies = run.best, run.retrained_accuracies
        page = RunFolder(run.path).page
        rows.append(
            (
                Link(label, quote(os.path.relpath(page, folder))) if page.is_file() else label,
                run.section("task").get("name", ABSENT),
                run.section("model").get("name", ABSENT),
                number_text(run.verdict.candidates[run.verdict.result].val_loss if run.verdict else None),
                number_text(best.val_loss if best else None),
                best.outer_step if best else ABSENT,
                percent(_best_accuracy(run)),
                percent(mean(accuracies) if accuracies else None),
                _done(run),
                len(run.elements),
                run.records[-1].world_size if run.records else ABSENT,
                duration(run.seconds),
                bytes_text(run.peak_bytes),
            )
        )
    return Table("the runs", headings, rows, range(3, len(headings)))


def event_table(runs: Sequence[RunContents]) -> Table | None:
    """The events of the outer steps; None where there are none."""
    rows = [
        (label, record.outer_step, event)
        for label, run in zip(labels(runs), runs, strict=True)
        for record in run.records
        for event in record.events
    ]
    if not rows:
        return None
    if len(runs) == 1:
        return Table("events", ("outer step", "event"), [row[1:] for row in rows], [0])
    return Table("events", ("run", "outer step", "event"), rows, [1])


def outer_step_table(run: RunContents) -> Table | None:
    """A row per outer step with the values that it trained with; the best row stands out."""
    if not run.records:
        return None
    headings = ("outer step", "training steps", "validation loss", "validation accuracy", "time", *run.names)
    rows = [
        (
            f"{record.outer_step} (best)" if record is run.best else record.outer_step,
            f"{record.horizon:,}",
            number_text(record.val_loss),
            percent(record.val_accuracy),
            duration(record.seconds),
            *(_values(record.hyperparameters.get(name, [])) for name in run.names),
        )
        for record in run.records
    ]
    best = next((index for index, record in enumerate(run.records) if record is run.best), None)
    return Table("outer steps", headings, rows, range(len(headings)), best)


def environment_table(run: RunContents) -> Table | None:
    """Versions and machine of the last start."""
    rows = [(key, _plain(value)) for key, value in run.environment.items()]
    return Table("environment", (), rows) if rows else None


def config_differences(runs: Sequence[RunContents]) -> Table:
    """A row per config key whose values differ between the runs."""
    flat = [dict(_flattened(run.config)) for run in runs]
    keys = dict.fromkeys(key for config in flat for key in config)
    rows = [
        (key, *(str(config.get(key, ABSENT)) for config in flat))
        for key in keys
        if len({str(config.get(key)) for config in flat}) > 1
    ]
    return Table("differences", ("key", *labels(runs)), rows)


def _flattened(value: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _flattened(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


def _done(run: RunContents) -> str:
    done = len(run.records)
    return str(done) if run.asked in (None, done) else f"{done} of {run.asked}"


def _best_accuracy(run: RunContents) -> float | None:
    return max((r.val_accuracy for r in run.records if r.val_accuracy is not None), default=None)


def _values(values: Row) -> str:
    texts = [number_text(value, 3) for value in flat(values)]
    if len(texts) > MOST_VALUES:
        half = MOST_VALUES // 2
        texts = [*texts[:half], "…", *texts[-half:]]
    return " ".join(texts)


def _plain(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return ABSENT if value is None else str(value)
