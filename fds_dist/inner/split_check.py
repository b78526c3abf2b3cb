"""Whether batches that are split along `mesh.data` are the same on all ranks, and train as the whole batch would."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from fds_dist.common.faults import Fault, UserError
from fds_dist.common.randomness import random_state
from fds_dist.distributed.data_axis import DataAxis
from fds_dist.distributed.fingerprint import batch_fingerprint, deviating_ranks
from fds_dist.inner.monitor import BatchesDiffer
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import ALONE, InnerRun
from fds_dist.inner.tolerance import TOLERANCES, relative
from fds_dist.inner.training import Training


def check_batches(problem: Problem, outer_step: int, axis: DataAxis) -> None:
    """Compares the first training batch of `outer_step` along the axis.

    All weights stay the same on these ranks whatever they train on, so that no later comparison would show it.

    Raises:
        BatchesDiffer: on every rank of the axis.
    """
    if axis.size == 1:
        return
    prints = batch_fingerprint(next(problem.batches(outer_step)), problem.device)
    gathered = axis.gather(prints, axis.size * len(prints)).reshape(axis.size, -1)
    if deviating := deviating_ranks([hash(tuple(row)) for row in gathered.tolist()]):
        raise BatchesDiffer(
            f"the first training batch of outer step {outer_step} is another one on places {deviating} of the data "
            "axis. "
            "Every rank must get the same batches (a task may depend on its arguments and the seed alone)"
        )


def check_split(run: InnerRun) -> None:
    """Compares the first gradient of the split batch with that of the whole batch, which every rank computes alone.

    A network that reads across samples (attention over the batch, normalization of its own, pairs) sees only its part.
    Dropout is off, since each part has masks of its own; a network that draws other random numbers is not compared,
    nor is batch-norm where `mesh.batch_norm` is `part`.

    Raises:
        UserError: they differ; on every rank of the axis.
    """
    axis, problem = run.ranks.data, run.problem.by("plain")
    if axis.size == 1:
        return
    whole = _Gradient(InnerRun(problem, run.values, run.number, run.horizon, ALONE))
    if whole.draws or (whole.has_batch_norm and not axis.whole_batch_norm):
        return
    split = _Gradient(InnerRun(problem, run.values, run.number, run.horizon, run.ranks))
    ours = axis.gather(split.gradient, len(whole.gradient))
    error = max(relative(ours, whole.gradient), relative(axis.sum(split.loss), whole.loss))
    if error > TOLERANCES[problem.dtype].steps:  # a NaN is the run's own
        text = f"a split batch's gradient is off by {error:.1e} from the whole one's: the network reads across samples"
        raise UserError(Fault("mesh.data", text, "1 for this network"))


class _Gradient:
    """The first gradient of a run, without dropout."""

    def __init__(self, run: InnerRun) -> None:
        training = Training(run)
        layers = list(training.network.module.modules())
        for layer in layers:
            if isinstance(layer, _DropoutNd):
                layer.eval()
            elif isinstance(layer, (nn.RNNBase, nn.MultiheadAttention)):
                layer.dropout = 0.0
        self.has_batch_norm = any(isinstance(layer, _BatchNorm) for layer in layers)
        point = training.point(run.problem.theta(run.hyperparameters[0]))
        self.gradient: Tensor = point.gradient
        self.loss: Tensor = point.loss
        after = random_state(run.problem.device)
        training.network.seed(training.network.last_seed)
        self.draws = not torch.equal(after, random_state(run.problem.device))
        """Whether the forward pass drew from PyTorch's generators all the same."""
