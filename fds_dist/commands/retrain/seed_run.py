"""The retraining of one seed, from its initial weights or its last checkpoint to its result."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from fds_dist.commands.retrain.checkpoints import SeedFolder, write_weights
from fds_dist.commands.retrain.data import RetrainData, mean_loss
from fds_dist.commands.retrain.engines import ENGINES
from fds_dist.commands.retrain.optimizers import prepared
from fds_dist.commands.retrain.records import Block, EpochPart, EpochRecord, RetrainResult, SeedStart, best_of
from fds_dist.commands.retrain.reporting import Reporters
from fds_dist.commands.retrain.resuming import Identity
from fds_dist.commands.retrain.scoring import Scoring, sum_over_ranks
from fds_dist.commands.retrain.settings import RetrainSettings
from fds_dist.commands.retrain.step_terms import KEY, StepTerms
from fds_dist.commands.retrain.writer import Writer
from fds_dist.common.files import make_folder, write_text_atomic
from fds_dist.common.interruptions import asked_to_end
from fds_dist.common.precision import DTYPES
from fds_dist.common.randomness import derive_seed
from fds_dist.common.records import to_line, to_values
from fds_dist.config import CheckpointConfig
from fds_dist.distributed.endings import end_together
from fds_dist.distributed.errors import reached
from fds_dist.distributed.mesh import Ranks
from fds_dist.inner.meetings import CHANCES, Meetings
from fds_dist.schedule.driver import ScheduleDriver
from fds_dist.schedule.schedule import Schedule
from fds_dist.tasks.base import Task

BLOCKS_PER_HORIZON = 100


class SeedRun:
    """The retraining of one seed, from its initial weights or its last checkpoint to its result."""

    def __init__(
        self,
        seed: int,
        task: Task,
        build_model: Callable[[int], nn.Module],
        schedule: Schedule,
        settings: RetrainSettings,
        ranks: Ranks,
        files: SeedFolder,
        reporters: Reporters,
        checkpoint: CheckpointConfig,
        data: Mapping[str, str],
    ) -> None:
        self.seed, self.settings, self.ranks = seed, settings, ranks
        self.files, self.reporters = files, reporters
        self.data = RetrainData(task, ranks.device, seed, settings.hold_out)
        self.schedule = prepared(schedule, self.data.horizon(settings))
        module = build_model(derive_seed(seed, KEY, "weights"))
        self.engine = ENGINES[settings.engine](module, self.schedule, settings, ranks)
        self.driver = ScheduleDriver(self.engine.optimizer, self.schedule, fixed=True)
        self.terms = StepTerms(seed, task, settings, ranks, self.driver)
        self.scoring = Scoring(task, self.data, self.engine, ranks, DTYPES[settings.dtype])
        self.identity = Identity(seed, self.schedule, self.data.steps_per_epoch, settings, data)
        self.writer = Writer(ranks)
        self.records: list[EpochRecord] = []
        self.part = EpochPart()
        self.notes = [*self.data.notes, *self.engine.notes]
        self.checkpoint, self.saved = checkpoint, time.monotonic()
        horizon = self.schedule.horizon
        self.meetings = Meetings(ranks, horizon, -(-horizon // CHANCES), checkpoint.grace)

    @property
    def epochs(self) -> int:
        """Passes over the data; the last pass may be incomplete."""
        return math.ceil(self.schedule.horizon / self.data.steps_per_epoch)

    @property
    def done(self) -> bool:
        return len(self.records) == self.epochs or (bool(self.records) and self.records[-1].diverged)

    def run(self) -> RetrainResult:
        """Trains the remaining epochs."""
        with closing(self.engine), closing(self.writer):
            if not self.settings.restart:
                self._resume()
            return self._train_all()

    def _train_all(self) -> RetrainResult:
        self.reporters.start(self._start())
        for note in self.notes:
            self.reporters.note(note)
        self.ranks.on_first(partial(make_folder, self.files.path, parents=True))
        while not self.done:
            record = self._epoch(len(self.records))
            self.records.append(record)
            self._save(best_of(self.records) is record)
            self.reporters.epoch(record)
            if any(self.ranks.gather_objects(asked_to_end())):
                self.writer.finish()
                end_together(self.ranks, f"epoch {record.epoch} is saved")
        self.writer.finish()
        if self.records[-1].diverged:
            self.reporters.note(f"seed {self.seed} diverged: the training loss is {self.records[-1].train_loss}")
        return RetrainResult(self.seed, self.files.path, tuple(self.records))

    def _epoch(self, epoch: int) -> EpochRecord:
        began = time.perf_counter()
        train_loss = self._train(epoch)
        test, val = self.scoring.scores()
        return EpochRecord(
            seed=self.seed,
            epoch=epoch,
            step=self.driver.last_epoch,
            train_loss=train_loss,
            test_loss=test.loss,
            test_accuracy=test.accuracy,
            test_metrics=test.metrics,
            val_loss=val and val.loss,
            val_accuracy=val and val.accuracy,
            hyperparameters=self.schedule.at(self.driver.last_epoch - 1),
            seconds=time.perf_counter() - began,
            world_size=self.ranks.world_size,
        )

    def _train(self, epoch: int) -> float:
        """Trains one epoch; returns the mean training loss over its samples."""
        before, self.part = self.part, EpochPart()
        told = before if self.ranks.is_first else EpochPart()
        loss_sum = torch.full((), told.loss_sum, dtype=torch.float64, device=self.ranks.device)
        samples, left = told.samples, self.schedule.horizon - (self.driver.last_epoch - before.steps)
        steps = min(self.data.steps_per_epoch, left)
        for step, batch in enumerate(islice(self.data.training(epoch, steps), before.steps, None), before.steps + 1):
            terms = self.terms.of(batch)
            losses = self.engine.step(terms)
            self.driver.step()
            reached(f"step {{}} of the retraining with seed {self.seed}", self.driver.last_epoch)
            self._report(mean_loss(losses, terms))
            for loss, term in zip(losses, terms, strict=True):
                if term.samples:
                    loss_sum += loss * term.samples
                    samples += term.samples
            if step < steps:
                self._keep(step, loss_sum, samples)
        total_loss, total = self._sums(loss_sum, samples)
        return total_loss / total

    def _sums(self, loss_sum: Tensor, samples: int) -> list[float]:
        """Both, over all ranks."""
        return sum_over_ranks(torch.stack([loss_sum, torch.full_like(loss_sum, samples)]), self.ranks).tolist()

    def _keep(self, step: int, loss_sum: Tensor, samples: int) -> None:
        """Saves the state after `step` steps of an epoch, where it is due or a signal asks any rank to end.

        Raises:
            KeyboardInterrupt, RankLost: see `end_together`, after saving, where one rank is asked to end.
        """
        is_due = time.monotonic() - self.saved >= self.checkpoint.every_seconds
        answers = self.meetings.ask(self.driver.last_epoch, (is_due, asked_to_end()))
        if answers is None or not any(answers):
            return
        total_loss, total = self._sums(loss_sum, samples)
        self._save_state({"part": to_values(EpochPart(step, total_loss, round(total)))})
        if answers[1]:
            self.writer.finish()
            where = f"saved after step {self.driver.last_epoch}; the same line goes on"
            self.reporters.note(f"seed {self.seed}: {where}")
            end_together(self.ranks, where)

    def _report(self, loss: Tensor) -> None:
        step, horizon = self.driver.last_epoch, self.schedule.horizon
        if self.ranks.is_first and step % max(1, horizon // BLOCKS_PER_HORIZON) == 0:
            self.reporters.block(Block(self.seed, step, horizon, loss.item(), self.schedule.at(step - 1)))

    def _save(self, is_best: bool) -> None:
        """Writes the state last: if a crash prevents that, the epoch is repeated and writes all files again."""
        weights = self.engine.weights()
        files = {self.files.best: weights} if is_best else {}
        files |= {self.files.last: weights}
        if self.engine.averages:
            files |= {self.files.last_trained: self.engine.weights(trained=True)}
        history = "".join(to_line(record) + "\n" for record in self.records)

        def write() -> None:
            for path, weights in files.items():
                write_weights(path, weights)
            write_text_atomic(self.files.history, history)

        self._save_state({}, write)

    def _save_state(self, part: dict[str, Any], first: Callable[[], None] = lambda: None) -> None:
        """Saves the state after what `first` writes; training waits for the copies alone, and for an earlier save."""
        self.writer.finish()
        progress = {"identity": self.identity.values, "records": to_values(self.records), **part}
        last = self.engine.save(self.files.state, progress)

        def write() -> None:
            first()
            last()

        self.writer.begin(write)
        self.saved = time.monotonic()

    def _resume(self) -> None:
        """Restores what an interrupted call with the same settings has done.

        Raises:
            UserError: the earlier call had other settings, or its state is damaged.
        """

        def accept(progress: dict[str, Any]) -> None:
            self.records, self.part = self.identity.done(self.files.state, progress)
            if self.done and "hold_out" not in progress["identity"]:  # otherwise the next epoch writes the file anew
                earlier = f"{self.files.best} is by an earlier version, which chose it on the test data"
                self.notes.append(f"{earlier}; restart=true trains anew")

        if self.engine.load(self.files.state, accept) is not None:
            done = self.part.steps + (self.records[-1].step if self.records else 0)
            self.driver.load_state_dict({"last_epoch": done, "schedule": self.schedule.to_json()})

    def _start(self) -> SeedStart:
        return SeedStart(
            seed=self.seed,
            seeds=self.settings.all_seeds,
            epochs=self.epochs,
            first_epoch=len(self.records),
            horizon=self.schedule.horizon,
            world_size=self.ranks.world_size,
            device=str(self.ranks.device),
            folder=self.files.path,
        )
