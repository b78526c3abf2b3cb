"""Whether the ranks that share out batches share out the same ones."""

from __future__ import annotations

import torch

from fds_dist.distributed.data_axis import DataAxis
from fds_dist.distributed.fingerprint import deviating_ranks, fingerprint
from fds_dist.engine.problem import Problem


class BatchesDiffer(RuntimeError):
    """Ranks that split each batch between them got different batches from the task."""


def check_batches(problem: Problem, outer_step: int, axis: DataAxis) -> None:
    """Compares the first training batch of `outer_step` along the axis.

    All weights stay the same on these ranks whatever they train on, so that no later comparison would show it.

    Raises:
        BatchesDiffer: on every rank of the axis.
    """
    if axis.size == 1:
        return
    prints = torch.stack([fingerprint(part.to(problem.device)) for part in next(problem.batches(outer_step))])
    gathered = axis.gather(prints, axis.size * len(prints)).reshape(axis.size, -1)
    if deviating := deviating_ranks([hash(tuple(row)) for row in gathered.tolist()]):
        raise BatchesDiffer(
            f"the first training batch of outer step {outer_step} is another one on places {deviating} of the data "
            "axis. "
            "Every rank must get the same batches (a task may depend on its arguments and the seed alone)"
        )
