"""What a retraining tells its reporters: plain records, the lines of ``history.jsonl``, and the mean over seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fds_dist.common.records import FloatOrNan, to_values
from fds_dist.common.words import Spread, spread


@dataclass(frozen=True)
class SeedStart:
    """The retraining of one seed begins, or continues after an interruption."""

    seed: int
    seeds: range
    """All seeds of this launch."""
    epochs: int
    """Passes over the data, the last of which may be a part of one."""
    first_epoch: int
    """Epochs that an interrupted launch has already done."""
    horizon: int
    """Optimizer steps in all."""
    world_size: int
    device: str
    folder: Path
    """Where this seed's files are."""


@dataclass(frozen=True)
class Block:
    """Progress after a hundredth of the horizon."""

    seed: int
    step: int
    """Steps done."""
    horizon: int
    train_loss: float
    """Of the last step, on the first rank's part of the batch."""
    hyperparameters: dict[str, float]
    """Values of the last step."""


@dataclass(frozen=True)
class EpochRecord:
    """One epoch: a line of ``history.jsonl``."""

    seed: int
    epoch: int
    step: int
    """Optimizer steps done at its end."""
    train_loss: FloatOrNan
    """Mean over the epoch's samples, each at the weights of its step."""
    test_loss: FloatOrNan
    """Mean over the test samples after the epoch, batch-norm on running statistics."""
    test_accuracy: float | None
    """Share of right answers; None where targets are no class indices."""
    hyperparameters: dict[str, FloatOrNan]
    """Values of the epoch's last step."""
    seconds: float
    """Training and testing."""
    world_size: int

    @property
    def score(self) -> float:
        """The figure by which epochs are compared: the accuracy, or the negative loss where there is none."""
        if self.test_accuracy is not None:
            return self.test_accuracy
        return -self.test_loss if math.isfinite(self.test_loss) else -math.inf

    @property
    def diverged(self) -> bool:
        """Whether training cannot continue: a loss that is not finite comes from weights that will not recover."""
        return not math.isfinite(self.train_loss)


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
        """The first of the epochs that tested best; chosen on the test data, hence an optimistic figure."""
        return max(self.epochs, key=lambda record: record.score)


@dataclass(frozen=True)
class Summary:
    """All seeds together."""

    seeds: tuple[int, ...]
    final_test_accuracy: Spread | None
    best_test_accuracy: Spread | None
    final_test_loss: Spread | None

    @classmethod
    def of(cls, results: Sequence[RetrainResult]) -> Summary:
        """Mean and spread over `results`."""
        return cls(
            seeds=tuple(result.seed for result in results),
            final_test_accuracy=_over_seeds([result.final.test_accuracy for result in results]),
            best_test_accuracy=_over_seeds([result.best.test_accuracy for result in results]),
            final_test_loss=_over_seeds([result.final.test_loss for result in results]),
        )

    def to_json(self) -> str:
        """Indented JSON."""
        return json.dumps(to_values(self), indent=2) + "\n"


def _over_seeds(figures: Sequence[float | None]) -> Spread | None:
    """None where a figure is missing or not finite: a mean of the others would be too good."""
    whole = all(figure is not None and math.isfinite(figure) for figure in figures)
    return spread(figures) if whole else None
