"""What a search has brought, in a sentence and in pairs of numbers: the start's and the result's."""

from __future__ import annotations

import math
from typing import NamedTuple

from fds_dist.commands.report.contents import RunContents
from fds_dist.common.words import counted, number_text, percent


class Change(NamedTuple):
    """One figure before and after."""

    what: str
    start: str
    result: str


class Headline(NamedTuple):
    """The first thing that a reader sees."""

    sentence: str
    changes: list[Change]


def headline(run: RunContents) -> Headline:
    """By the judging on fresh seeds; before it, by the validation losses that the search has seen."""
    return _judged(run) if run.verdict is not None else _seen(run)


def _judged(run: RunContents) -> Headline:
    verdict = run.verdict
    assert verdict is not None
    start, result = verdict.candidates["start"], verdict.candidates[verdict.result]
    where = f"on average over {counted(verdict.seeds, 'fresh training run')} of {verdict.horizon:,} steps"
    accuracies = percent(start.val_accuracy), percent(result.val_accuracy)
    has_accuracy = start.val_accuracy is not None and result.val_accuracy is not None
    what, (before, after) = "validation loss", (_loss(start.val_loss, None), _loss(result.val_loss, None))
    if has_accuracy and accuracies[0] != accuracies[1]:
        what, (before, after) = "validation accuracy", accuracies
    sentence = f"Training with the learned values reaches {after} {what}; the start reaches {before}, {where}."
    if verdict.result == "start":
        sentence = f"No learned values did better than the start, {where}."
    elif start.lost or result.lost:
        sentence = f"Training with the learned values: {result}; with the start: {start}; {where}."
    changes = [Change("validation loss", _loss(start.val_loss, None), _loss(result.val_loss, result.val_loss_error))]
    if start.val_accuracy is not None or result.val_accuracy is not None:
        changes.insert(0, Change("validation accuracy", *accuracies))
    return Headline(sentence, changes)


def _seen(run: RunContents) -> Headline:
    if not run.records:
        return Headline("No outer step is done yet.", [])
    first, best = run.records[0], run.best
    if best is None:
        return Headline("No training run has ended with a finite validation loss yet.", [])
    changes = [Change("validation loss", _loss(first.val_loss, None), _loss(best.val_loss, None))]
    if first.val_accuracy is not None and best.val_accuracy is not None:
        changes.insert(0, Change("validation accuracy", percent(first.val_accuracy), percent(best.val_accuracy)))
    sentence = (
        f"The lowest validation loss so far is that of outer step {best.outer_step}. "
        "The values are not judged on fresh training runs."
    )
    return Headline(sentence, changes)


def _loss(value: float, error: float | None) -> str:
    if not math.isfinite(value):
        return "diverged"
    return number_text(value) + ("" if error is None else f" ± {number_text(error, 2)}")
