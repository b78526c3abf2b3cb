"""A retraining in Weights & Biases: one run for all seeds of a launch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fds_dist.retrain.records import Block, EpochRecord, SeedStart, Spread, Summary
from fds_dist.tracking.wandb_session import WandbSession


class WandbReporter:
    """Logs losses and hyperparameters against ``step`` and test figures against ``epoch``, each seed under its own
    name (``seed0/train_loss``), and in the end the means over seeds as the run's summary.

    Args:
        folder: of the retraining; the run's id is kept there, so that one that goes on keeps its run.
        config: what is shown as the run's config.
    """

    def __init__(self, session: WandbSession, folder: Path, config: Mapping[str, Any]) -> None:
        self._session, self._folder, self._config = session, folder, config
        self._started = False
        self.tell: Callable[[str], None] = lambda message: None
        session.tell = lambda message: self.tell(message)

    def start(self, seed: SeedStart) -> None:
        """See `Reporter`."""
        if self._started:
            return
        self._started = True
        goes_on = seed.first_epoch > 0 or seed.seed != seed.seeds.start
        metrics = {}
        for each in seed.seeds:
            metrics |= {f"seed{each}/train/*": f"seed{each}/step", f"seed{each}/test/*": f"seed{each}/epoch"}
        name = f"retrain-{self._folder.parent.name}"
        self._session.start(self._folder, name, self._config, goes_on, metrics)

    def block(self, block: Block) -> None:
        """See `Reporter`."""
        values = {"loss": block.train_loss, **block.hyperparameters}
        metrics = {f"train/{name}": value for name, value in values.items() if math.isfinite(value)}
        self._log(block.seed, metrics | {"step": block.step})

    def epoch(self, record: EpochRecord) -> None:
        """See `Reporter`."""
        values = {"loss": record.test_loss, "accuracy": record.test_accuracy}
        metrics = {
            f"test/{name}": value for name, value in values.items() if value is not None and math.isfinite(value)
        }
        self._log(record.seed, metrics | {"epoch": record.epoch + 1})

    def note(self, message: str) -> None:
        """Events are for the console."""

    def finish(self, summary: Summary | None) -> None:
        """See `Reporter`."""
        if summary is not None:
            self._session.summarize(
                {
                    "retrained_test_accuracy": _mean(summary.final_test_accuracy),
                    "retrained_test_accuracy_std": None
                    if summary.final_test_accuracy is None
                    else summary.final_test_accuracy.std,
                    "best_test_accuracy": _mean(summary.best_test_accuracy),
                    "retrained_test_loss": _mean(summary.final_test_loss),
                }
            )
        self._session.finish(exit_code=1 if summary is None else 0)

    def _log(self, seed: int, metrics: Mapping[str, float]) -> None:
        self._session.log({f"seed{seed}/{name}": value for name, value in metrics.items()})


def _mean(spread: Spread | None) -> float | None:
    return None if spread is None else spread.mean
