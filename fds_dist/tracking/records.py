"""The records that a run sends to its trackers. One of them is a line of ``history.jsonl``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from fds_dist.common.records import Count, FloatOrNan, NotNaN, Whole, from_line, to_values
from fds_dist.common.values import FiniteRow, Row, RowOrNan, Value, figures, flat
from fds_dist.tracking.verdict import Verdict


class Stage(NamedTuple):
    """Inner steps that follow each other and cost the same."""

    steps: int
    tangents: float
    """Live tangents on the rank that has most of them, less those that are pruned."""


class OuterWork(NamedTuple):
    """What an outer step costs."""

    stages: tuple[Stage, ...]
    """In order, over the horizon."""
    after: float = 0.0
    """Plain steps after the last inner step, as on the way back of reverse mode."""

    def live(self, start: int, stop: int) -> float:
        """The mean number of live tangents from the inner step `start` to before `stop`; 0 where there is no step."""
        total, first = 0.0, 0
        for steps, tangents in self.stages:
            total += tangents * max(0, min(stop, first + steps) - max(start, first))
            first += steps
        return total / (stop - start) if stop > start else 0.0


@dataclass(frozen=True)
class RunStart:
    """A run begins, or continues after an interruption."""

    run_dir: Path
    config: dict[str, Any]
    """The resolved config as plain dicts, lists, numbers and strings."""
    outer_steps: int
    first_outer_step: int
    tangents: int
    """K, the number of learned numbers."""
    world_size: int
    device: str
    resumed: bool
    work: tuple[OuterWork, ...] = ()
    """Of each outer step, those done included; nothing where it is not known."""
    judging: float = 0.0
    """Plain steps that judge the result after the last outer step, at the most."""
    places: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    """See `RunEnd.places`."""


@dataclass(frozen=True)
class InnerBlock:
    """Some consecutive inner steps of one horizon."""

    outer_step: int
    steps: range
    """The inner steps covered, numbered from 0 at the start of the horizon."""
    horizon: int
    live_tangents: int
    """The number of tangents, over all ranks, that are no longer zero at the last of the steps."""
    train_loss: float
    """Mean over the steps."""
    hyperparameters: dict[str, Value]
    """The values at the last of the steps."""


@dataclass(frozen=True)
class OuterRecord:
    """One outer step: a line of ``history.jsonl``. Each hyperparameter has one value per bucket: a number, or a list of
    its `size` numbers."""

    outer_step: Whole
    horizon: Count
    hyperparameters: dict[str, FiniteRow]
    """The values of this step's inner run."""
    hypergradients: dict[str, RowOrNan]
    """d val_loss / d value, a sum over the bucket's window."""
    val_loss: FloatOrNan
    val_accuracy: NotNaN | None
    """The task's metric of that name, else the share of right answers; None where neither is meant."""
    seconds: FloatOrNan
    world_size: Count
    step_sizes: dict[str, RowOrNan] = field(default_factory=dict)
    """The outer optimizer's step sizes after its update."""
    events: list[str] = field(default_factory=list)
    """Messages for the user about this step, e.g. on a non-finite hypergradient."""
    hypergradient_spread: dict[str, RowOrNan] | None = None
    """Standard deviation of one replica's hypergradients; None with a single replica."""
    rank_seconds: list[FloatOrNan] | None = None
    """By rank, the part of `seconds` in which the rank did not wait for other ranks."""
    rank_peak_bytes: list[int] | None = None
    """By rank, the peak memory so far: see `fds_dist.common.memory.own_peak_bytes`."""
    metrics: dict[str, FloatOrNan] | None = None
    """The task's own metrics of the validation data, but for the accuracy; None where it has none."""

    def to_json(self) -> str:
        """One line of strict JSON; NaN and infinities become null. An optional field
        that is None is left out."""
        optional = [each.name for each in fields(self) if each.default is None and getattr(self, each.name) is None]
        return json.dumps({name: value for name, value in to_values(self).items() if name not in optional})

    @classmethod
    def from_json(cls, line: str | bytes) -> OuterRecord:
        """Reads a line of `to_json`: null becomes NaN in a field of floats; unknown keys are ignored.

        Raises:
            ValueError: the line is not JSON, or a key is missing or has a value of the wrong type.
        """
        return from_line(cls, line)


@dataclass(frozen=True)
class RunEnd:
    """A run has ended, successfully or not."""

    status: str
    """'finished', 'failed' or 'interrupted'."""
    message: str
    schedule: Mapping[str, Row] | None
    """The values of the result; None before the first update."""
    best_outer_step: int | None
    best_val_loss: float | None
    best_val_accuracy: float | None
    run_dir: Path
    plain_steps: float | None = None
    """Compute of all outer steps so far, in plain training steps over all replicas."""
    report: Path | None = None
    """The page that shows the run."""
    next_steps: dict[str, str] = field(default_factory=dict)
    """What the user may want to do next → the command line for it."""
    result: str | None = None
    """The candidate that is the result: average, best, last or start; None before the first update."""
    verdict: Verdict | None = None
    """How the candidates did on fresh seeds; None where nothing was judged."""
    places: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    """By name the part of the relative horizon, from 0 to 1, that each value of the schedule stands for: twice the same
    number for a knot of the shape `linear`. Left out, all values share the horizon equally."""

    def place(self, name: str, bucket: int) -> tuple[float, float]:
        """Where the value `bucket` of a hyperparameter of the schedule stands."""
        count = len((self.schedule or {})[name])
        return self.places[name][bucket] if name in self.places else (bucket / count, (bucket + 1) / count)


def inner_metrics(block: InnerBlock) -> dict[str, float]:
    """The finite numbers of a block under flat names, for dashboards."""
    metrics = {"inner/train_loss": block.train_loss, "inner/live_tangents": float(block.live_tangents)}
    for name, value in block.hyperparameters.items():
        metrics |= figures(f"inner/{name}", value)
    return finite(metrics)


Cell = float | str | None
"""What a flat row of the history holds; whole numbers are integers."""


def flat_row(record: OuterRecord) -> dict[str, Cell]:
    """An outer step as one row of a table; see `outer_metrics` for the names of its numbers."""
    row: dict[str, Cell] = {
        "outer_step": record.outer_step,
        "horizon": record.horizon,
        "val_loss": record.val_loss,
        "val_accuracy": record.val_accuracy,
        "seconds": record.seconds,
        "world_size": record.world_size,
        "events": "; ".join(record.events),
    }
    return row | _by_name(record)


def outer_metrics(record: OuterRecord, most: float = math.inf) -> dict[str, float]:
    """The finite numbers of an outer step under flat names, e.g. ``hypergradient/lr/0`` for the first bucket and, where
    a bucket has several numbers, what `figures` makes of them: ``hypergradient/weights/0/2``.

    Args:
        most: hyperparameters of more numbers are left out.
    """
    metrics: dict[str, float | None] = {
        "outer/val_loss": record.val_loss,
        "outer/val_accuracy": record.val_accuracy,
        "outer/seconds": record.seconds,
        "outer/horizon": float(record.horizon),
    }
    return finite(metrics | _by_name(record, most))


BY_BUCKET = ("hyperparameter", "hypergradient", "hypergradient_spread", "step_size")
"""What `outer_metrics` has of each bucket."""


def _by_name(record: OuterRecord, most: float = math.inf) -> dict[str, float]:
    """The task's metrics, and the numbers of each bucket of the hyperparameters that have at most `most` numbers."""
    spreads = record.hypergradient_spread or {}
    by_bucket = (record.hyperparameters, record.hypergradients, spreads, record.step_sizes)
    numbers = {f"metric/{name}": value for name, value in (record.metrics or {}).items()}
    for kind, values in zip(BY_BUCKET, by_bucket, strict=True):
        numbers |= _by_bucket(kind, {name: row for name, row in values.items() if len(flat(row)) <= most})
    return numbers


def _by_bucket(kind: str, values: Mapping[str, Row]) -> dict[str, float]:
    return {
        key: number
        for name, row in values.items()
        for bucket, value in enumerate(row)
        for key, number in figures(f"{kind}/{name}/{bucket}", value)
    }


CURVES = 20
"""The most outer steps of a search whose training curves a dashboard lays over each other: evenly spread ones."""


def has_curve(outer_step: int, outer_steps: int) -> bool:
    """Whether the training curve of an outer step is among `CURVES` of `outer_steps`."""
    return outer_step % -(-outer_steps // CURVES) == 0


def finite(metrics: Mapping[str, float | None]) -> dict[str, float]:
    """The metrics that are not None and finite: dashboards accept no others."""
    return {name: value for name, value in metrics.items() if value is not None and math.isfinite(value)}
