"""The reporters of a retraining, on rank 0: their base class, the console, and Weights & Biases."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID

from fds_dist.commands.retrain.records import Block, EpochRecord, SeedStart, Summary
from fds_dist.common.console import PLAIN_INTERVAL, is_live, plain_line, progress_bar
from fds_dist.common.values import figures, text_of
from fds_dist.common.words import Spread, counted, duration, percent
from fds_dist.tracking.broadcast import Broadcast, Listener
from fds_dist.tracking.records import finite
from fds_dist.tracking.wandb_session import WandbSession


class Reporter(Listener):
    """Receives the events of a retraining. A subclass overrides the methods of the events that it needs."""

    def start(self, seed: SeedStart) -> None:
        """The retraining of a seed begins, or continues after an interruption."""

    def block(self, block: Block) -> None:
        """A hundredth of the horizon is trained."""

    def epoch(self, record: EpochRecord) -> None:
        """An epoch is trained and tested."""

    def finish(self, summary: Summary | None) -> None:
        """All seeds are done. `summary` is None if an error or an interruption ended the retraining."""


class Reporters(Broadcast[Reporter]):
    """All reporters of a retraining. A failing reporter does not stop the retraining: see `Broadcast`."""

    def start(self, seed: SeedStart) -> None:
        """See `Reporter`, as for all of these."""
        self._each(lambda reporter: reporter.start(seed))

    def block(self, block: Block) -> None:
        self._each(lambda reporter: reporter.block(block))

    def epoch(self, record: EpochRecord) -> None:
        self._each(lambda reporter: reporter.epoch(record))

    def finish(self, summary: Summary | None) -> None:
        self._each(lambda reporter: reporter.finish(summary))


class ConsoleReporter(Reporter):
    """Prints a line per epoch; in a terminal also a live bar, elsewhere also plain lines within long epochs.

    Args:
        console: where to print; standard output by default.
        clock: seconds, monotonic.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console or Console(), clock
        self._terminal = is_live(self._console)
        self._bar: tuple[Progress, TaskID] | None = None
        self._next_line = clock() + PLAIN_INTERVAL

    def start(self, seed: SeedStart) -> None:
        self._stop_bar()
        self._epochs = seed.epochs
        place = f" ({seed.seeds.index(seed.seed) + 1} of {len(seed.seeds)})" if len(seed.seeds) > 1 else ""
        self._line(
            f"retrain seed {seed.seed}{place}: {counted(seed.epochs, 'epoch')}, {counted(seed.horizon, 'step')}"
            f", {seed.device}, {counted(seed.world_size, 'rank')}; results {seed.folder}"
        )
        if seed.first_epoch:
            done = seed.first_epoch >= seed.epochs
            self._line("  already done" if done else f"  continues after {counted(seed.first_epoch, 'epoch')}")
        if self._terminal and seed.first_epoch < seed.epochs:
            self._start_bar(seed)

    def block(self, block: Block) -> None:
        now = self._clock()
        if self._bar is not None:
            bar, task = self._bar
            bar.update(task, completed=block.step, facts=f"loss {block.train_loss:.3g}")
        elif not self._terminal and now >= self._next_line:
            self._next_line = now + PLAIN_INTERVAL
            self._line(f"  seed {block.seed}, step {block.step}/{block.horizon}: loss {block.train_loss:.3g}")

    def epoch(self, record: EpochRecord) -> None:
        self._next_line = self._clock() + PLAIN_INTERVAL
        val, test = (
            ("" if loss is None else f", {part} loss {loss:.4g}")
            + ("" if accuracy is None else f", {part} accuracy {percent(accuracy, 2)}")
            for part, loss, accuracy in (
                ("val", record.val_loss, record.val_accuracy),
                ("test", record.test_loss, record.test_accuracy),
            )
        )
        metrics = "".join(f", {name} {value:.4g}" for name, value in record.test_metrics.items())
        values = ", ".join(f"{name} {text_of(value)}" for name, value in record.hyperparameters.items())
        self._line(
            f"  seed {record.seed}, epoch {record.epoch + 1}/{self._epochs}: train loss {record.train_loss:.4g}"
            f"{val}{test}{metrics}; {values}; {duration(record.seconds)}"
        )

    def note(self, message: str) -> None:
        self._line(f"note: {message}")

    def finish(self, summary: Summary | None) -> None:
        self._stop_bar()
        if summary is None:
            return
        accuracy, loss = partial(percent, decimals=2), "{:.4g}".format
        is_chosen, by_loss = summary.best_by != "", summary.best_by == "val_loss"
        figures = (
            ("final test accuracy", summary.final_test_accuracy, accuracy),
            ("test accuracy of the best weights", summary.best_test_accuracy if is_chosen else None, accuracy),
            ("final test loss", summary.final_test_loss, loss),
            ("test loss of the best weights", summary.best_test_loss if by_loss else None, loss),
        )
        shown = "; ".join(f"{name} {spread.text(form)}" for name, spread, form in figures if spread is not None)
        meaning = " (mean ± standard deviation)" if len(summary.seeds) > 1 else ""
        self._line(f"retrained {counted(len(summary.seeds), 'seed')}: {shown}{meaning}")
        order = "lowest validation loss (there is no accuracy)" if by_loss else "highest validation accuracy"
        if is_chosen:
            self._line(f"best.safetensors: the weights of the {order}")

    def _start_bar(self, seed: SeedStart) -> None:
        bar = progress_bar(self._console)
        done = seed.horizon * seed.first_epoch // seed.epochs
        task = bar.add_task(f"seed {seed.seed}", total=seed.horizon, completed=done, facts="")
        bar.start()
        self._bar = bar, task

    def _stop_bar(self) -> None:
        if self._bar is not None:
            self._bar[0].stop()
            self._bar = None

    def _line(self, text: str) -> None:
        plain_line(self._console, text)


class WandbReporter(Reporter):
    """Logs losses and hyperparameters against ``step``, validation and test figures against ``epoch``, each seed under
    its own name (``seed0/train_loss``), and at the end the means over seeds as the run's summary.

    Args:
        folder: the retraining's folder. It stores the run's id, so that a resumed retraining continues the same run.
        config: shown as the run's config.
    """

    def __init__(self, session: WandbSession, folder: Path, config: Mapping[str, Any]) -> None:
        self._session, self._folder, self._config = session, folder, config
        self._started = False
        session.tell = self.tell

    def start(self, seed: SeedStart) -> None:
        """See `Reporter`."""
        if self._started:
            return
        self._started = True
        resumed = seed.first_epoch > 0 or seed.seed != seed.seeds.start
        metrics = {}
        for each in seed.seeds:
            by_epoch = {f"seed{each}/{part}/*": f"seed{each}/epoch" for part in ("val", "test")}
            metrics |= {f"seed{each}/train/*": f"seed{each}/step", **by_epoch}
        name = f"retrain-{self._folder.parent.name}"
        self._session.start(self._folder, name, self._config, resumed, metrics)

    def block(self, block: Block) -> None:
        """See `Reporter`."""
        values = {"loss": block.train_loss, **block.hyperparameters}
        metrics = {label: number for name, value in values.items() for label, number in figures(f"train/{name}", value)}
        self._log(block.seed, metrics | {"step": block.step})

    def epoch(self, record: EpochRecord) -> None:
        """See `Reporter`."""
        metrics = {"test/loss": record.test_loss, "test/accuracy": record.test_accuracy}
        metrics |= {"val/loss": record.val_loss, "val/accuracy": record.val_accuracy}
        metrics |= {f"test/{name}": value for name, value in record.test_metrics.items() if name != "loss"}
        self._log(record.seed, metrics | {"epoch": record.epoch + 1})

    def finish(self, summary: Summary | None) -> None:
        """See `Reporter`."""
        if summary is not None:
            accuracy = summary.final_test_accuracy
            self._session.summarize(
                {
                    "retrained_test_accuracy": _mean(accuracy),
                    "retrained_test_accuracy_std": accuracy and accuracy.std,
                    "best_test_accuracy": _mean(summary.best_test_accuracy),
                    "retrained_test_loss": _mean(summary.final_test_loss),
                }
            )
        self._session.finish(exit_code=1 if summary is None else 0)

    def _log(self, seed: int, metrics: Mapping[str, float | None]) -> None:
        self._session.log({f"seed{seed}/{name}": value for name, value in finite(metrics).items()})


def _mean(spread: Spread | None) -> float | None:
    return None if spread is None else spread.mean
