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

from fds_dist.distributed.errors import reached
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
        self._place = f"inner step {{}} of outer step {outer_step}"
        self._ranks, self._on_block, self._consistency = ranks, on_block, consistency
        self._block_size = -(-schedule.horizon // BLOCKS_PER_HORIZON)
        self._losses: list[Tensor] = []
        self._since_comparison: list[Tensor] = []
        self._agreed: int | None = None
        self._is_lost = False

    def __call__(self, state: InnerState, loss: Tensor) -> bool:
        """Returns False where the run has diverged beyond return (weights that are not finite).

        Ranks that share out tangents end together, where they meet: one that left alone would leave the others at
        another collective, whose messages have other sizes.
        """
        reached(self._place, state.step)
        self._losses.append(loss)
        self._since_comparison.append(loss)
        last = state.step == self._schedule.horizon
        if last or len(self._losses) == self._block_size:
            self._is_lost |= not self._report(state)
        if self._ranks.shape.tangent == 1:
            return not self._is_lost
        if last or state.step % self._consistency.every == 0:
            return self._meet(state)
        return True

    def _report(self, state: InnerState) -> bool:
        """Tells of a block of steps; returns whether the run is healthy."""
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

    def _meet(self, state: InnerState) -> bool:
        """Compares the ranks of one inner run, or overwrites their weights with those of the first; whether to go on.

        Raises:
            RunsDiverged: the weights differ; names the step and the ranks.
            BatchesDiffer: the ranks train on other batches.
        """
        ranks, mode = self._ranks, self._consistency.mode
        weights = int(fingerprint(state.weights)) if mode == "verify" else 0
        finite = bool(torch.isfinite(state.weights).all())
        told = ranks.gather_axis("tangent", torch.tensor([weights, finite, self._is_lost], dtype=torch.int64))
        prints, finites, losts = zip(*(part.tolist() for part in told), strict=True)
        if all(losts):
            return False
        non_finite = [place for place, is_finite in enumerate(finites) if not is_finite]
        broken = non_finite if mode != "off" and len(non_finite) < len(finites) else []
        if deviating := broken or deviating_ranks(prints):
            differing = [ranks.on_tangent_axis(place) for place in deviating]
            raise RunsDiverged(state.step, differing, self._agreed, ranks.device.type == "cuda", bool(broken))
        if mode == "broadcast":
            self._refuse_mixture(state.step)
            for tensor in (state.weights, *tree_flatten((state.optimizer, state.buffers))[0]):
                ranks.broadcast_tangent_axis(tensor)
        self._agreed = state.step
        return not any(losts)

    def _refuse_mixture(self, step: int) -> None:
        """Refuses to copy weights between ranks that see other batches: each would differentiate another run.

        Raises:
            BatchesDiffer: on every rank.
        """
        losses = torch.stack(self._since_comparison).double().mean()[None]
        first, *others = [float(part) for part in self._ranks.gather_axis("tangent", losses)]
        self._since_comparison = []
        differing = [place for place, loss in enumerate(others, 1) if is_mixture(loss, first)]
        if differing:
            ranks = ", ".join(str(self._ranks.on_tangent_axis(place)) for place in differing)
            raise BatchesDiffer(
                f"up to inner step {step} rank {ranks} trained on other batches than rank "
                f"{self._ranks.on_tangent_axis(0)}: consistency.mode=broadcast heals rounding, not other data. "
                "Every rank must get the same batches (a task may depend on its arguments and the seed alone)"
            )


def is_mixture(loss: float, other: float, tolerance: float = MIXTURE) -> bool:
    """Whether two ranks' losses differ by more than `tolerance` of them; one that is not finite equals another such."""
    if not (math.isfinite(loss) and math.isfinite(other)):
        return math.isfinite(loss) != math.isfinite(other)
    return abs(loss - other) > tolerance * abs(other)


def compare_validation(outer_step: int, val_loss: float, ranks: Ranks, mode: str) -> None:
    """Compares the validation loss of the ranks that share out the tangents of a run, each of which computes it.

    They are the same to the last bit on CPUs where `consistency.mode` is verify; else up to `MIXTURE`.

    Raises:
        BatchesDiffer: on every rank of the run; names the ranks and their losses.
    """
    if mode == "off" or ranks.shape.tangent == 1:
        return
    exact = mode == "verify" and ranks.device.type == "cpu"
    first, *others = (loss for (loss,) in ranks.gather_numbers("tangent", [val_loss]))
    tolerance = 0.0 if exact else MIXTURE
    told = [
        f"{loss:.9g} on rank {ranks.on_tangent_axis(place)}"
        for place, loss in enumerate([first, *others])
        if not place or is_mixture(loss, first, tolerance)
    ]
    if len(told) > 1:
        raise BatchesDiffer(
            f"the validation loss of outer step {outer_step} is {', '.join(told)}. "
            "Every rank must get the same batches and losses (a task may depend on its arguments and the seed alone)"
        )
