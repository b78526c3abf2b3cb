"""What happens alike on every rank before an inner run and after each of its steps: losses, the ranks compared, the end
of a lost run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from fds_dist.distributed.fingerprint import RunsDiverged, deviating_ranks, fingerprint
from fds_dist.distributed.mesh import Ranks
from fds_dist.inner.plan import Plan
from fds_dist.inner.run import InnerState
from fds_dist.schedule.schedule import Schedule
from fds_dist.tracking.records import InnerBlock


class BatchesDiffer(RuntimeError):
    """Ranks of one inner run got different batches from the task."""


MIXTURE = 0.01
"""Relative difference of the ranks' losses from which on they train on other batches: rounding, which `broadcast`
heals, makes 1e-6 of it between two comparisons."""


BLOCKS_PER_HORIZON = 100


@dataclass(frozen=True)
class Consistency:
    """What is done about ranks that do not replay the same run: `verify`, `broadcast` or `off`, each `every` steps."""

    mode: str = "verify"
    every: int = 100


class StepMonitor:
    """The `OnStep` of one horizon.

    Losses stay on the device and are read in blocks: one synchronisation per hundredth of the horizon. `on_block` is
    called alike on every rank of the inner run.
    """

    def __init__(
        self,
        outer_step: int,
        schedule: Schedule,
        plan: Plan,
        ranks: Ranks,
        on_block: Callable[[InnerBlock], None],
        consistency: Consistency,
    ) -> None:
        self._outer_step, self._schedule, self._plan = outer_step, schedule, plan
        self._ranks, self._on_block, self._consistency = ranks, on_block, consistency
        self._block_size = -(-schedule.horizon // BLOCKS_PER_HORIZON)
        self._losses: list[Tensor] = []
        self._since_comparison: list[Tensor] = []
        self._agreed: int | None = None

    def __call__(self, state: InnerState, loss: Tensor) -> bool:
        """Returns False where the run has diverged beyond return (weights that are not finite)."""
        self._losses.append(loss)
        self._since_comparison.append(loss)
        last = state.step == self._schedule.horizon
        if last or state.step % self._consistency.every == 0:
            self._compare(state)
        if last or len(self._losses) == self._block_size:
            return self._report(state)
        return True

    def _report(self, state: InnerState) -> bool:
        mean = self._ranks.data.sum(torch.stack(self._losses).double().mean()).item()
        healthy = math.isfinite(mean) or bool(torch.isfinite(state.weights).all())
        first, last = state.step - len(self._losses), state.step - 1
        self._losses = []
        self._on_block(
            InnerBlock(
                outer_step=self._outer_step,
                steps=range(first, state.step),
                horizon=self._schedule.horizon,
                live_tangents=self._plan.live(last),
                train_loss=mean,
                hyperparameters=self._schedule.at(last),
            )
        )
        return healthy

    def _refuse_mixture(self, step: int) -> None:
        """Refuses to copy weights between ranks that see other batches: each would differentiate another run.

        Raises:
            BatchesDiffer: on every rank.
        """
        losses = torch.stack(self._since_comparison).double().mean()[None]
        first, *others = [float(part) for part in self._ranks.gather_axis("tangent", losses)]
        self._since_comparison = []
        differing = [place for place, loss in enumerate(others, 1) if abs(loss - first) > MIXTURE * abs(first)]
        if differing:
            ranks = ", ".join(str(self._ranks.on_tangent_axis(place)) for place in differing)
            raise BatchesDiffer(
                f"up to inner step {step} rank {ranks} trained on other batches than rank "
                f"{self._ranks.on_tangent_axis(0)}: consistency.mode=broadcast heals rounding, not other data. "
                "Every rank must get the same batches (a task may depend on its arguments and the seed alone)"
            )

    def _compare(self, state: InnerState) -> None:
        """Compares the weights of the ranks of one inner run, or overwrites them with those of the first.

        Raises:
            RunsDiverged: they differ; names the step and the ranks.
        """
        ranks = self._ranks
        if self._consistency.mode == "off" or ranks.shape.tangent == 1:
            return
        if self._consistency.mode == "broadcast":
            self._refuse_mixture(state.step)
            for tensor in (state.weights, *tree_flatten((state.optimizer, state.buffers))[0]):
                ranks.broadcast_tangent_axis(tensor)
            return
        prints = [int(part) for part in ranks.gather_axis("tangent", fingerprint(state.weights))]
        if deviating := deviating_ranks(prints):
            differing = [ranks.on_tangent_axis(place) for place in deviating]
            raise RunsDiverged(state.step, differing, self._agreed, on_gpus=ranks.device.type == "cuda")
        self._agreed = state.step
