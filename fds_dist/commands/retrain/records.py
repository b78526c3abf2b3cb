"""The records that a retraining sends to its reporters: progress, lines of ``history.jsonl``, means over seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fds_dist.common.records import Count, FloatOrNan, NonNegative, NotNaN, Whole, to_values
from fds_dist.common.values import FiniteValue, Value
from fds_dist.common.words import Spread, spread


@dataclass(frozen=True)
class EpochPart:
    """What has been done of an epoch that was cut off."""

    steps: Whole = 0
    loss_sum: float = 0.0
    """Over the samples on all ranks."""
    samples: Whole = 0


@dataclass(frozen=True)
class SeedStart:
    """The retraining of one seed begins, or continues after an interruption."""

    seed: int
    seeds: range
    """All seeds of this launch."""
    epochs: int
    """Passes over the data; the last pass may be incomplete."""
    first_epoch: int
    """Epochs that an interrupted launch has already done."""
    horizon: int
    """Optimizer steps in all."""
    world_size: int
    device: str
    folder: Path
    """The folder of this seed's files."""


@dataclass(frozen=True)
class Block:
    """Progress after a hundredth of the horizon."""

    seed: int
    step: int
    """Steps done."""
    horizon: int
    train_loss: float
    """Of the last step, on the first rank's part of the batch."""
    hyperparameters: dict[str, Value]
    """Values of the last step."""


@dataclass(frozen=True)
class EpochRecord:
    """One epoch: a line of ``history.jsonl``."""

    seed: int
    epoch: Whole
    step: Count
    """Optimizer steps done at its end."""
    train_loss: FloatOrNan
    """Mean over the epoch's samples, each at the weights of its step."""
    test_loss: FloatOrNan
    """Mean over the test samples after the epoch, batch-norm on running statistics."""
    test_accuracy: NotNaN | None
    """The task's metric of that name, else the share of right answers; None where neither is meant."""
    hyperparameters: dict[str, FiniteValue]
    """Values of the epoch's last step."""
    seconds: NonNegative
    """Training, validation and test."""
    world_size: Count
    test_metrics: dict[str, FloatOrNan] = field(default_factory=dict)
    """The task's other metrics."""
    val_loss: float | None = None
    """Mean over the validation samples that are held out; None where none are, or where it is not finite."""
    val_accuracy: NotNaN | None = None
    """As `test_accuracy`, of the validation samples that are held out."""

    @property
    def diverged(self) -> bool:
        """Whether training must stop: after a loss that is not finite, the weights do not recover."""
        return not math.isfinite(self.train_loss)


def chosen_by(records: Sequence[EpochRecord]) -> str:
    """The figure that the best of one seed's epochs is chosen by: the validation accuracy where there is one, else the
    validation loss; empty where no validation data is held out. Never a test figure, which would then be optimistic."""
    names = ("val_accuracy", "val_loss")
    return next((name for name in names if any(_is_finite(getattr(record, name)) for record in records)), "")


def best_of(records: Sequence[EpochRecord]) -> EpochRecord:
    """The first of the epochs that are best by `chosen_by`, where one whose figure is not finite is worse than all
    others; the last epoch where nothing is held out."""
    name = chosen_by(records)
    sign = 1.0 if name == "val_accuracy" else -1.0

    def score(record: EpochRecord) -> float:
        figure = getattr(record, name)
        return sign * figure if _is_finite(figure) else -math.inf

    return max(records, key=score) if name else records[-1]


def _is_finite(figure: float | None) -> bool:
    return figure is not None and math.isfinite(figure)


@dataclass(frozen=True)
class RetrainResult:
    """One retrained network."""

    seed: int
    folder: Path
    """``last.safetensors`` and ``best.safetensors`` (its weights and buffers), ``history.jsonl``."""
    epochs: tuple[EpochRecord, ...]

    @property
    def final(self) -> EpochRecord:
        """The last epoch."""
        return self.epochs[-1]

    @property
    def best(self) -> EpochRecord:
        """See `best_of`; its test figures had no part in the choice."""
        return best_of(self.epochs)


@dataclass(frozen=True)
class Summary:
    """All seeds together."""

    seeds: tuple[int, ...]
    final_test_accuracy: Spread | None
    best_test_accuracy: Spread | None
    """Of the epochs whose weights are the best."""
    final_test_loss: Spread | None
    best_test_loss: Spread | None = None
    final_val_accuracy: Spread | None = None
    """Of the validation data that is held out; None where there is none."""
    best_val_accuracy: Spread | None = None
    final_val_loss: Spread | None = None
    best_val_loss: Spread | None = None
    best_by: str = ""
    """`val_accuracy` or `val_loss`: what the best weights are chosen by. Empty: they are the last."""

    @classmethod
    def of(cls, results: Sequence[RetrainResult]) -> Summary:
        """Mean and spread over `results`."""
        spreads: dict[str, Any] = {
            f"{which}_{figure}": _over_seeds([getattr(getattr(result, which), figure) for result in results])
            for which in ("final", "best")
            for figure in ("test_accuracy", "test_loss", "val_accuracy", "val_loss")
        }
        seeds = tuple(result.seed for result in results)
        return cls(seeds=seeds, **spreads, best_by=chosen_by(results[0].epochs))

    def to_json(self) -> str:
        """Indented JSON."""
        return json.dumps(to_values(self), indent=2) + "\n"


def _over_seeds(figures: Sequence[float | None]) -> Spread | None:
    """The spread; None if a figure is missing or not finite, because a mean of the others would be too good."""
    return spread(figures) if all(map(_is_finite, figures)) else None
