"""The records that a retraining sends to its reporters: progress, lines of ``history.jsonl``, means over seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

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
    """Training and testing."""
    world_size: Count
    test_metrics: dict[str, FloatOrNan] = field(default_factory=dict)
    """The task's other metrics."""

    @property
    def diverged(self) -> bool:
        """Whether training must stop: after a loss that is not finite, the weights do not recover."""
        return not math.isfinite(self.train_loss)


def chosen_by(records: Sequence[EpochRecord]) -> str:
    """The figure that the best of one seed's epochs is chosen by: the accuracy where there is one, else the loss."""
    return "test_loss" if records[0].test_accuracy is None else "test_accuracy"


def best_of(records: Sequence[EpochRecord]) -> EpochRecord:
    """The first of the epochs that tested best; one whose figure is not finite is worse than all others."""
    name = chosen_by(records)
    sign = 1.0 if name == "test_accuracy" else -1.0

    def score(record: EpochRecord) -> float:
        figure = getattr(record, name)
        return sign * figure if figure is not None and math.isfinite(figure) else -math.inf

    return max(records, key=score)


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
        """See `best_of`; chosen on the test data, hence an optimistic figure."""
        return best_of(self.epochs)


@dataclass(frozen=True)
class Summary:
    """All seeds together."""

    seeds: tuple[int, ...]
    final_test_accuracy: Spread | None
    best_test_accuracy: Spread | None
    final_test_loss: Spread | None
    best_test_loss: Spread | None = None
    """Of the epochs whose weights are the best."""
    best_by: str = ""
    """`test_accuracy` or `test_loss`: what the best weights are chosen by."""

    @classmethod
    def of(cls, results: Sequence[RetrainResult]) -> Summary:
        """Mean and spread over `results`."""
        return cls(
            seeds=tuple(result.seed for result in results),
            final_test_accuracy=_over_seeds([result.final.test_accuracy for result in results]),
            best_test_accuracy=_over_seeds([result.best.test_accuracy for result in results]),
            final_test_loss=_over_seeds([result.final.test_loss for result in results]),
            best_test_loss=_over_seeds([result.best.test_loss for result in results]),
            best_by=chosen_by(results[0].epochs),
        )

    def to_json(self) -> str:
        """Indented JSON."""
        return json.dumps(to_values(self), indent=2) + "\n"


def _over_seeds(figures: Sequence[float | None]) -> Spread | None:
    """The spread; None if a figure is missing or not finite, because a mean of the others would be too good."""
    whole = all(figure is not None and math.isfinite(figure) for figure in figures)
    return spread(figures) if whole else None
