"""The cards and tables of a report."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from html import escape
from statistics import mean
from typing import Any

from fds_dist.commands.report.contents import RunContents, labels
from fds_dist.common.values import Row, flat
from fds_dist.common.words import ABSENT, bytes_text, counted, duration, number_text, percent
from fds_dist.tracking.verdict import DESCRIBED

MOST_VALUES = 12
"""The most values of a hyperparameter that a table shows; `history.jsonl` has all of them."""


def cards(run: RunContents) -> str:
    """The figures of a run that readers look for first."""
    best, records, weights = run.best, run.records, run.environment.get("weights")
    facts = {
        **_judged_facts(run),
        "best validation loss": number_text(best.val_loss if best else None),
        "best validation accuracy": percent(_best_accuracy(run)),
        "outer steps": _done(run),
        "learned numbers": str(len(run.elements)),
        "weights": f"{weights:,}" if isinstance(weights, int) else ABSENT,
        "ranks": str(records[-1].world_size if records else run.environment.get("world_size", ABSENT)),
        "time": duration(run.seconds),
        "inner steps": f"{sum(record.horizon for record in records):,}",
    }
    if run.peak_bytes is not None:
        facts["peak memory of a rank"] = bytes_text(run.peak_bytes)
    if (plan := run.plan()) and (tangents := run.tangent_bytes(plan)):
        facts["tangents of a rank"] = bytes_text(max(tangents))
    if accuracies := run.retrained_accuracies:
        facts[f"retrained test accuracy ({counted(len(accuracies), 'seed')})"] = percent(mean(accuracies))
    items = (f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return f'<dl class="cards">{"".join(items)}</dl>'


def _judged_facts(run: RunContents) -> dict[str, str]:
    """The result's figures on the fresh seeds; empty where nothing was judged."""
    if run.verdict is None:
        return {}
    result = run.verdict.candidates[run.verdict.result]
    accuracy = {} if result.val_accuracy is None else {"judged validation accuracy": percent(result.val_accuracy)}
    return {"judged validation loss": number_text(result.val_loss), **accuracy}


def verdict_table(run: RunContents) -> str:
    """A row per candidate with its runs on the fresh seeds; that of the result stands out."""
    verdict = run.verdict
    if verdict is None:
        return ""
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
    words = f"<p>{escape(verdict.headline.capitalize())}: {verdict.horizon:,} steps each.</p>"
    return words + table(headings, rows, range(2, len(headings)), list(verdict.candidates).index(verdict.result))


def run_table(runs: Sequence[RunContents]) -> str:
    """A row per run."""
    headings = (
        *("run", "task", "model", "judged validation loss", "best validation loss", "at outer step"),
        "best validation accuracy",
        *("retrained test accuracy", "outer steps", "learned numbers", "ranks", "time", "peak memory"),
    )
    rows = []
    for label, run in zip(labels(runs), runs, strict=True):
        best, accuracies = run.best, run.retrained_accuracies
        rows.append(
            (
                label,
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
    return table(headings, rows, range(3, len(headings)))


def event_table(runs: Sequence[RunContents]) -> str:
    """The events of the outer steps; empty where there are none."""
    rows = [
        (label, record.outer_step, event)
        for label, run in zip(labels(runs), runs, strict=True)
        for record in run.records
        for event in record.events
    ]
    if len(runs) == 1:
        return table(("outer step", "event"), [row[1:] for row in rows], [0]) if rows else ""
    return table(("run", "outer step", "event"), rows, [1]) if rows else ""


def outer_step_table(run: RunContents) -> str:
    """A row per outer step with the values that it trained with; the best row stands out."""
    if not run.records:
        return ""
    headings = ("outer step", "inner steps", "validation loss", "validation accuracy", "time", *run.names)
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
    return table(headings, rows, range(len(headings)), best)


def config_differences(runs: Sequence[RunContents]) -> str:
    """A row per config key whose values differ between the runs."""
    flat = [dict(_flattened(run.config)) for run in runs]
    keys = dict.fromkeys(key for config in flat for key in config)
    rows = [
        (key, *(str(config.get(key, ABSENT)) for config in flat))
        for key in keys
        if len({str(config.get(key)) for config in flat}) > 1
    ]
    return table(("key", *labels(runs)), rows) if rows else "<p>Nowhere.</p>"


def table(
    headings: Sequence[str],
    rows: Iterable[Sequence[object]],
    numbers: Collection[int] = (),
    best: int | None = None,
) -> str:
    """An HTML table.

    Args:
        rows: the first cell is the heading of its row.
        numbers: columns that are aligned right.
        best: the row that stands out.
    """

    def cell(tag: str, column: int, content: object, scope: str = "") -> str:
        kind = ' class="number"' if column in numbers else ""
        return f"<{tag}{scope}{kind}>{escape(str(content))}</{tag}>"

    head = "".join(cell("th", column, heading, ' scope="col"') for column, heading in enumerate(headings))
    body = []
    for index, (first, *others) in enumerate(rows):
        cells = [cell("th", 0, first, ' scope="row"'), *(cell("td", at, each) for at, each in enumerate(others, 1))]
        kind = ' class="best"' if index == best else ""
        body.append(f"<tr{kind}>{''.join(cells)}</tr>")
    top = f"<thead><tr>{head}</tr></thead>" if any(headings) else ""
    return f'<div class="scroll" tabindex="0"><table>{top}<tbody>{"".join(body)}</tbody></table></div>'


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
