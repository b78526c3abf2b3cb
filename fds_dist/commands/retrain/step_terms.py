"""What a step of a retraining trains on: its micro-batches, their losses and their random numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fds_dist.commands.retrain.data import Term, part_of
from fds_dist.commands.retrain.optimizers import inner_optimizer
from fds_dist.commands.retrain.settings import RetrainSettings
from fds_dist.common.batch import Batch, micro_batches
from fds_dist.common.precision import DTYPES
from fds_dist.common.randomness import derive_seed, seed_generators
from fds_dist.common.transfer import to_device
from fds_dist.distributed.mesh import Ranks
from fds_dist.schedule.driver import ScheduleDriver
from fds_dist.schedule.groups import base_of
from fds_dist.tasks.augment import augmentation, augmented
from fds_dist.tasks.base import Task, loss_takes_hyperparameters
from fds_dist.tasks.losses import OnBatch

KEY = "retrain"
"""Takes the place of the outer step in the random numbers, so that a retraining shares no weights with a search."""


class StepTerms:
    """Makes the terms of each step with one seed; `driver` knows the step and its hyperparameters."""

    def __init__(self, seed: int, task: Task, settings: RetrainSettings, ranks: Ranks, driver: ScheduleDriver) -> None:
        self._seed, self._task, self._ranks, self.driver = seed, task, ranks, driver
        self._accumulate, self._dtype = settings.accumulate, DTYPES[settings.dtype]
        self._loss_of = OnBatch(task.loss)
        defaults = inner_optimizer(driver.schedule).defaults
        self._loss_names = [name for name in driver.schedule.at(0) if base_of(name) not in defaults]

    def of(self, batch: Batch) -> list[Term]:
        """The micro-batches of a step, cut from the whole batch and then split over the ranks, as in the search."""
        values, terms = self._values(), []
        for index, (micro_batch, fraction) in enumerate(micro_batches(batch, self._accumulate)):
            part = part_of(micro_batch, self._ranks, self._dtype, self._augment(values, index))
            loss_of, weight = self._training_loss(part.batch, values), part.weight * fraction
            terms.append(Term(part.inputs, loss_of, weight, part.samples, partial(self._seed_step, index)))
        return terms

    def _values(self) -> dict[str, Tensor]:
        """The hyperparameters that are the task's own at this step."""
        values = self.driver.values
        device = self._ranks.device
        return {name: to_device(torch.tensor(values[name], dtype=self._dtype), device) for name in self._loss_names}

    def _augment(self, values: Mapping[str, Tensor], micro_batch: int) -> Callable[[Any], Any] | None:
        """The task's `augment` as a function of the inputs of a whole micro-batch; None if it has none."""
        augment, seed = augmentation(self._task), self._seed_of(micro_batch)
        return None if augment is None else lambda inputs: augmented(augment, inputs, seed, values)

    def _training_loss(self, batch: Batch, values: Mapping[str, Tensor]) -> Callable[[Any], Tensor]:
        """The task's loss as a function of the output, with the hyperparameters that are the loss's own."""
        arguments = (values,) if values and loss_takes_hyperparameters(self._task) else ()
        return lambda output: self._loss_of(output, batch, *arguments)

    def _seed_of(self, micro_batch: int, *parts: int) -> int:
        place = ("micro-batch", micro_batch) if micro_batch else ()
        return derive_seed(self._seed, KEY, self.driver.last_epoch, "step", *parts, *place)

    def _seed_step(self, micro_batch: int) -> None:
        """Random numbers of this step (dropout) are keyed by (seed, step), and by the rank and the micro-batch beyond
        the first: parts of a batch must not share their masks."""
        seed = self._seed_of(micro_batch, *([self._ranks.rank] if self._ranks.rank else []))
        seed_generators(seed, self._ranks.device)
