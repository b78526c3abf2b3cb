"""Who is told how a retraining goes: a protocol to fulfil, what a person sees, and Weights & Biases. Rank 0 only."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import Progress, TaskID

from fds_dist.commands.retrain.records import Block, EpochRecord, SeedStart, Summary
from fds_dist.common.console import PLAIN_INTERVAL, is_live, plain_line, progress_bar
from fds_dist.common.words import Spread, counted, duration, percent
from fds_dist.tracking.wandb_session import WandbSession


class Reporter(Protocol):
    """Something that is told how a retraining goes, such as a console or a tracking service.

    It may also have an attribute ``tell``: `Reporters` replaces it by its own ``note``, so that it can tell a person
    something through the others.
    """

    def start(self, seed: SeedStart) -> None:
        """A seed begins, or goes on."""
        ...

    def block(self, block: Block) -> None:
        """A hundredth of the horizon is done."""
        ...

    def epoch(self, record: EpochRecord) -> None: ...

    def note(self, message: str) -> None:
        """An event that a person should see now."""
        ...

    def finish(self, summary: Summary | None) -> None:
        """All seeds are done; None where an error or an interruption ended the retraining."""
        ...


class Reporters:
    """Tells all of them in order. One that raises is reported by a note on the others and dropped: telling must not
    stop a training."""

    def __init__(self, reporters: Iterable[Reporter]) -> None:
        self._reporters = list(reporters)
        for reporter in self._reporters:
            if hasattr(reporter, "tell"):
                setattr(reporter, "tell", self.note)  # noqa: B010 (optional, hence not in the protocol)

    def start(self, seed: SeedStart) -> None:
        self._each("start", seed)

    def block(self, block: Block) -> None:
        self._each("block", block)

    def epoch(self, record: EpochRecord) -> None:
        self._each("epoch", record)

    def note(self, message: str) -> None:
        self._each("note", message)

    def finish(self, summary: Summary | None) -> None:
        self._each("finish", summary)

    def _each(self, method: str, argument: object) -> None:
        for reporter in list(self._reporters):
            if reporter not in self._reporters:  # dropped meanwhile, by the note on another one's failure
                continue
            try:
                getattr(reporter, method)(argument)
            except Exception as error:
                self._reporters.remove(reporter)
                reason = " ".join(str(error).split()) or type(error).__name__
                self.note(f"{type(reporter).__name__} failed and is off from here on: {reason}")


class ConsoleReporter:
    """A line per epoch; in a terminal a live bar below it, elsewhere plain lines in long epochs.

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
            self._line("  done already" if done else f"  goes on after {counted(seed.first_epoch, 'epoch')}")
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
        accuracy = "" if record.test_accuracy is None else f", test accuracy {percent(record.test_accuracy, 2)}"
        values = ", ".join(f"{name} {value:.3g}" for name, value in record.hyperparameters.items())
        self._line(
            f"  seed {record.seed}, epoch {record.epoch + 1}/{self._epochs}: train loss {record.train_loss:.4g}"
            f", test loss {record.test_loss:.4g}{accuracy}; {values}; {duration(record.seconds)}"
        )

    def note(self, message: str) -> None:
        self._line(f"note: {message}")

    def finish(self, summary: Summary | None) -> None:
        self._stop_bar()
        if summary is None:
            return
        accuracy, loss = partial(percent, decimals=2), "{:.4g}".format
        figures = (
            ("final test accuracy", summary.final_test_accuracy, accuracy),
            ("best test accuracy", summary.best_test_accuracy, accuracy),
            ("final test loss", summary.final_test_loss, loss),
        )
        shown = "; ".join(f"{name} {spread.text(form)}" for name, spread, form in figures if spread is not None)
        meaning = " (mean ± standard deviation)" if len(summary.seeds) > 1 else ""
        self._line(f"retrained {counted(len(summary.seeds), 'seed')}: {shown}{meaning}")

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
