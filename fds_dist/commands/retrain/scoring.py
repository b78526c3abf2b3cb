"""The scores of a retraining's weights on test and validation data."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from fds_dist.commands.retrain.data import RetrainData, part_of
from fds_dist.commands.retrain.engines import Engine
from fds_dist.common.batch import Batch
from fds_dist.distributed.errors import rank_errors
from fds_dist.distributed.mesh import Ranks
from fds_dist.tasks.base import Task, validation_loss
from fds_dist.tasks.losses import OnBatch
from fds_dist.tasks.metrics import Mean, Score


def sum_over_ranks(sums: Tensor, ranks: Ranks) -> Tensor:
    """The sums over all ranks, the same on each; changes `sums`."""
    if ranks.world_size > 1:
        with rank_errors():
            dist.all_reduce(sums, group=ranks.group)
    return sums


class Scoring:
    """Scores the weights that `engine` has at the moment, on all ranks."""

    def __init__(self, task: Task, data: RetrainData, engine: Engine, ranks: Ranks, dtype: torch.dtype) -> None:
        self._task, self._data, self._engine, self._ranks, self._dtype = task, data, engine, ranks, dtype

    def scores(self) -> tuple[Score, Score | None]:
        """Means over the test samples, and over the validation samples where they are held out."""
        with self._engine.evaluating():
            test = self._score(self._data.testing())
            if not self._data.held_out:
                return test, None
            return test, self._score(self._data.validation()) if self._data.has_test else test

    def _score(self, batches: Iterable[Batch]) -> Score:
        """Means over the samples of `batches`, on all ranks."""
        loss_of, mean = OnBatch(validation_loss(self._task)), Mean(self._task)
        for batch in batches:
            part = part_of(batch, self._ranks, self._dtype)
            output = self._engine.predict(part.inputs)
            mean.add(loss_of(output, part.batch), output, part.batch, part.samples)
        return mean.score(partial(sum_over_ranks, ranks=self._ranks))
