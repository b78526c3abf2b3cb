"""Retraining: for each seed, epochs of optimizer steps driven by the schedule, with a test after each epoch."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fds_dist.commands.retrain.checkpoints import SeedFolder, write_weights
from fds_dist.commands.retrain.data import RetrainData, Term, mean_loss, part_of
from fds_dist.commands.retrain.engines import ENGINES
from fds_dist.commands.retrain.optimizers import inner_optimizer, prepared
from fds_dist.commands.retrain.records import Block, EpochRecord, RetrainResult, SeedStart, Summary, best_of
from fds_dist.commands.retrain.reporting import Reporter, Reporters
from fds_dist.commands.retrain.settings import RetrainSettings
from fds_dist.common.batch import Batch, micro_batches
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.files import make_folder, write_text_atomic
from fds_dist.common.precision import DTYPES
from fds_dist.common.randomness import derive_seed, seeded
from fds_dist.common.records import from_values, to_line, to_values
from fds_dist.common.secrets import hide_secrets
from fds_dist.common.transfer import to_device
from fds_dist.distributed.mesh import Ranks
from fds_dist.schedule.driver import ScheduleDriver
from fds_dist.schedule.groups import base_of
from fds_dist.schedule.schedule import Schedule
from fds_dist.tasks.augment import augmentation, augmented
from fds_dist.tasks.base import Task, loss_takes_hyperparameters, validation_loss
from fds_dist.tasks.losses import OnBatch
from fds_dist.tasks.metrics import Mean, Score

BLOCKS_PER_HORIZON = 100

KEY = "retrain"
"""Takes the place of the outer step in the random numbers, so that a retraining shares no weights with a search."""


def retrain(
    make_task: Callable[[int], Task],
    build_model: Callable[[int], nn.Module],
    schedule: Schedule,
    settings: RetrainSettings,
    ranks: Ranks,
    folder: Path,
    reporters: Sequence[Reporter] = (),
) -> list[RetrainResult]:
    """Trains a network from scratch for each of `settings.all_seeds`, by `schedule` stretched to `settings.epochs`
    or `settings.steps`.

    Under a launcher it is called alike on every rank; each computes its part of every batch. It writes `folder`/SEED/
    with ``history.jsonl``, ``last.safetensors``, ``best.safetensors`` (with ``ema`` these are averages, and those in
    training are in ``last_trained.safetensors``) and the state from which a later call with the same settings
    continues, and ``summary.json`` with mean and spread over the seeds. All seeds share one test set.

    Args:
        make_task: seed → task, so that the order of the data also differs between seeds.
        build_model: seed → network.
        reporters: receive the events of the retraining; used on rank 0 only.

    Raises:
        UserError: the schedule could train nothing, the task gives no usable data, or `folder` holds a retraining with
            other settings.
    """
    all_reporters = Reporters(reporters if ranks.is_first else ())
    results: list[RetrainResult] = []
    summary = None
    try:
        prepared(schedule, 1)  # before any data is loaded
        for seed in settings.all_seeds:
            task, files = make_task(seed), SeedFolder(folder / str(seed))
            with seeded(derive_seed(seed, KEY)):  # leaves the caller's generators as they were
                results.append(_SeedRun(seed, task, build_model, schedule, settings, ranks, files, all_reporters).run())
        summary = Summary.of(results)
        ranks.on_first(partial(write_text_atomic, folder / "summary.json", summary.to_json()))
    finally:
        all_reporters.finish(summary)
    return results


class _SeedRun:
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
    ) -> None:
        self.seed, self.task, self.settings, self.ranks = seed, task, settings, ranks
        self.loss_of = OnBatch(task.loss)
        self.files, self.reporters = files, reporters
        self.dtype = DTYPES[settings.dtype]
        self.data = RetrainData(task, ranks.device, seed)
        self.schedule = prepared(schedule, self.data.horizon(settings))
        defaults = inner_optimizer(schedule).defaults
        self.loss_names = [name for name in self.schedule.at(0) if base_of(name) not in defaults]
        module = build_model(derive_seed(seed, KEY, "weights"))
        self.engine = ENGINES[settings.engine](module, self.schedule, settings, ranks)
        self.driver = ScheduleDriver(self.engine.optimizer, self.schedule, fixed=True)
        self.records: list[EpochRecord] = []

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that define the retraining, without secrets; they must be the same when it is resumed."""
        launch = {"seed", "seeds", "restart"}
        settings = {name: value for name, value in self.settings.resolved().items() if name not in launch}
        schedule = json.loads(self.schedule.to_json())
        return {**hide_secrets(settings), "horizon": schedule.pop("horizon"), "schedule": schedule}

    @property
    def epochs(self) -> int:
        """Passes over the data; the last pass may be incomplete."""
        return math.ceil(self.schedule.horizon / self.data.steps_per_epoch)

    @property
    def done(self) -> bool:
        return len(self.records) == self.epochs or (bool(self.records) and self.records[-1].diverged)

    def run(self) -> RetrainResult:
        """Trains the remaining epochs."""
        with closing(self.engine):
            if not self.settings.restart:
                self._resume()
            return self._train_all()

    def _train_all(self) -> RetrainResult:
        self.reporters.start(self._start())
        for note in (*self.data.notes, *self.engine.notes):
            self.reporters.note(note)
        self.ranks.on_first(partial(make_folder, self.files.path, parents=True))
        while not self.done:
            record = self._epoch(len(self.records))
            self.records.append(record)
            self._save(best_of(self.records) is record)
            self.reporters.epoch(record)
        if self.records[-1].diverged:
            self.reporters.note(f"seed {self.seed} diverged: the training loss is {self.records[-1].train_loss}")
        return RetrainResult(self.seed, self.files.path, tuple(self.records))

    def _epoch(self, epoch: int) -> EpochRecord:
        began = time.perf_counter()
        train_loss = self._train(epoch)
        test = self._test()
        return EpochRecord(
            seed=self.seed,
            epoch=epoch,
            step=self.driver.last_epoch,
            train_loss=train_loss,
            test_loss=test.loss,
            test_accuracy=test.accuracy,
            test_metrics=test.metrics,
            hyperparameters=self.schedule.at(self.driver.last_epoch - 1),
            seconds=time.perf_counter() - began,
            world_size=self.ranks.world_size,
        )

    def _train(self, epoch: int) -> float:
        """Trains one epoch; returns the mean training loss over its samples."""
        loss_sum, samples = torch.zeros((), dtype=torch.float64, device=self.ranks.device), 0
        steps = min(self.data.steps_per_epoch, self.schedule.horizon - self.driver.last_epoch)
        for batch in self.data.training(epoch, steps):
            terms = self._terms(batch)
            losses = self.engine.step(terms)
            self.driver.step()
            self._report(mean_loss(losses, terms))
            for loss, term in zip(losses, terms, strict=True):
                if term.samples:
                    loss_sum += loss * term.samples
                    samples += term.samples
        total_loss, total = self._sum_over_ranks(torch.stack([loss_sum, torch.full_like(loss_sum, samples)])).tolist()
        return total_loss / total

    def _values(self) -> dict[str, Tensor]:
        """The hyperparameters that are the task's own at this step."""
        values = self.driver.values
        device = self.ranks.device
        return {name: to_device(torch.tensor(values[name], dtype=self.dtype), device) for name in self.loss_names}

    def _augment(self, values: Mapping[str, Tensor], micro_batch: int) -> Callable[[Any], Any] | None:
        """The task's `augment` as a function of the inputs of a whole micro-batch; None if it has none."""
        augment, seed = augmentation(self.task), self._seed_of(micro_batch)
        return None if augment is None else lambda inputs: augmented(augment, inputs, seed, values)

    def _terms(self, batch: Batch) -> list[Term]:
        """The micro-batches of a step, cut from the whole batch and then split over the ranks, as in the search."""
        values, terms = self._values(), []
        for index, (micro_batch, fraction) in enumerate(micro_batches(batch, self.settings.accumulate)):
            part = part_of(micro_batch, self.ranks, self.dtype, self._augment(values, index))
            loss_of, weight = self._training_loss(part.batch, values), part.weight * fraction
            terms.append(Term(part.inputs, loss_of, weight, part.samples, partial(self._seed_step, index)))
        return terms

    def _training_loss(self, batch: Batch, values: Mapping[str, Tensor]) -> Callable[[Any], Tensor]:
        """The task's loss as a function of the output, with the hyperparameters that are the loss's own."""
        arguments = (values,) if values and loss_takes_hyperparameters(self.task) else ()
        return lambda output: self.loss_of(output, batch, *arguments)

    def _test(self) -> Score:
        """Means over the test samples."""
        loss_of, mean = OnBatch(validation_loss(self.task)), Mean(self.task)
        with self.engine.evaluating():
            for batch in self.data.testing():
                part = part_of(batch, self.ranks, self.dtype)
                output = self.engine.predict(part.inputs)
                mean.add(loss_of(output, part.batch), output, part.batch, part.samples)
        return mean.score(self._sum_over_ranks)

    def _sum_over_ranks(self, sums: Tensor) -> Tensor:
        """The sums over all ranks, the same on each."""
        if self.ranks.world_size > 1:
            dist.all_reduce(sums, group=self.ranks.group)
        return sums

    def _seed_of(self, micro_batch: int, *parts: int) -> int:
        place = ("micro-batch", micro_batch) if micro_batch else ()
        return derive_seed(self.seed, KEY, self.driver.last_epoch, "step", *parts, *place)

    def _seed_step(self, micro_batch: int) -> None:
        """Random numbers of this step (dropout) are keyed by (seed, step), and by the rank and the micro-batch beyond
        the first: parts of a batch must not share their masks."""
        seed = self._seed_of(micro_batch, *([self.ranks.rank] if self.ranks.rank else []))
        torch.default_generator.manual_seed(seed)
        if self.ranks.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _report(self, loss: Tensor) -> None:
        step, horizon = self.driver.last_epoch, self.schedule.horizon
        if self.ranks.is_first and step % max(1, horizon // BLOCKS_PER_HORIZON) == 0:
            self.reporters.block(Block(self.seed, step, horizon, loss.item(), self.schedule.at(step - 1)))

    def _save(self, is_best: bool) -> None:
        """Writes the state last: if a crash prevents that, the epoch is repeated and writes all files again."""
        weights = self.engine.weights()
        files = {self.files.best: weights} if is_best else {}
        files |= {self.files.last: weights}
        if self.settings.ema is not None:
            files |= {self.files.last_trained: self.engine.weights(trained=True)}
        history = "".join(to_line(record) + "\n" for record in self.records)

        def write() -> None:
            for path, weights in files.items():
                write_weights(path, weights)
            write_text_atomic(self.files.history, history)

        self.ranks.on_first(write)
        self.engine.save(self.files.state, {"identity": self.identity, "records": to_values(self.records)})

    def _resume(self) -> None:
        """Restores the epochs that an interrupted call with the same settings has finished.

        Raises:
            UserError: the earlier call had other settings.
        """
        progress = self.engine.load(self.files.state, self._accept)
        if progress is None:
            return
        self.records = from_values(list[EpochRecord], progress["records"])
        state = {"last_epoch": self.records[-1].step, "schedule": self.schedule.to_json()}
        self.driver.load_state_dict(state)

    def _accept(self, progress: dict[str, Any]) -> None:
        """Raises `UserError` if the state comes from a call with other settings."""
        before, now = progress["identity"], self.identity
        if differing := [name for name in now if before.get(name) != now[name]]:  # earlier versions knew fewer names
            had = ", ".join(
                f"another {name}" if name in ("schedule", "deepspeed") else f"{name}={before.get(name)}"
                for name in differing
            )
            problem = f"{self.files.path} holds a retraining with {had}"
            raise UserError(Fault("", problem, "the same settings, or restart=true to train anew"))

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
