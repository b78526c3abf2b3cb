"""One inner run: what defines it, and the states that it goes through.

Shapes: D = weights, S = those whose state this rank of the `data` axis keeps (all, if it is alone), K = learned
numbers, H = numbers in use at a step, R = tangents that this rank of the `tangent` axis owns, in order of their first
steps, so that the live ones are a prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor

from fds_dist.common.transfer import to_device
from fds_dist.distributed.data_axis import DataAxis
from fds_dist.distributed.environment import LaunchEnvironment
from fds_dist.distributed.mesh import MeshShape, Ranks
from fds_dist.inner.problem import Problem
from fds_dist.schedule.buckets import Segment
from fds_dist.tangents import (
    Buffers,
)

if TYPE_CHECKING:
    from fds_dist.inner.checkpoint_files import Target

Value = TypeVar("Value")


@dataclass
class InnerState:
    """Where a run stands after `step` steps."""

    step: int
    weights: Tensor  # [D]
    optimizer: Any  # pytree of tensors [S] or []
    buffers: Buffers = field(default_factory=dict)


@dataclass
class Tangents:
    """Derivatives of the inner state by the elements of λ that this rank owns."""

    elements: tuple[int, ...]  # [R] positions in λ, by first step
    weights: Tensor  # [R, S] Z
    optimizer: Any  # tensors [R, ...], one per tensor of the optimizer's state
    buffers: Buffers = field(default_factory=dict)  # [R, ...] of each live buffer


OnStep = Callable[[InnerState, Tensor], bool]
"""(state after a step, this rank's part of its training loss [] on the device) → whether to go on. Called on every rank
of an inner run alike."""


def go_on(state: InnerState, loss: Tensor) -> bool:
    """The `OnStep` that never ends a run."""
    return True


def unsaid(remark: str) -> None:
    """Tells nobody."""


class RunCheckpointer(Protocol):
    """Keeps what an inner run has so far, so that one that was cut off can go on. A context, which the run is in."""

    def __enter__(self) -> object: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None: ...

    def restore(self, state: InnerState, tangents: Tangents) -> tuple[InnerState, Tangents]:
        """The state and tangents that were kept last; those given, which are the initial ones, if none were."""
        ...

    def restore_planned(self, width: int, plan: Callable[[int], tuple[Value, Sequence[Target]]]) -> Value | None:
        """What `keep_tensors` kept last, filled in; None if nothing was.

        Args:
            width: D, the number of weights.
            plan: step → what stood there, with empty tensors, and these tensors by name.
        """
        ...

    def keep(self, state: InnerState, tangents: Tangents) -> None:
        """Called after each step, on every rank alike; now and then keeps what it is given.

        Raises:
            KeyboardInterrupt: on all ranks of the inner run, after a checkpoint, where any of them is asked to end.
        """
        ...

    def keep_tensors(
        self, step: int, width: int, tensors: Callable[[], Mapping[str, Tensor]], elements: Sequence[int] = ()
    ) -> None:
        """As `keep`, for what else a run has after `step` steps.

        Args:
            width: D, the number of weights.
            tensors: gives what this rank writes, by name.
            elements: [R] of λ, whose tangents are rows of some of them.
        """
        ...


ALONE = Ranks(LaunchEnvironment(), MeshShape(1, 1, 1), torch.device("cpu"))
"""This process without any others."""


def first_of(size: int, device: torch.device) -> Ranks:
    """This process as the first of `size` ranks of the `data` axis, without the others: for what is `rehearsed`."""
    ranks = Ranks(LaunchEnvironment(), MeshShape(1, 1, size), device)
    ranks.data = DataAxis(0, size, exchanges=device.type == "cuda")
    return ranks


@dataclass(frozen=True)
class InnerRun:
    """One inner run: a problem at λ, the random numbers that it draws, its length, its ranks and who watches."""

    problem: Problem
    values: Sequence[float]  # [K] λ
    number: int
    """Of the outer step whose weights, split, batches and random numbers the run has."""
    horizon: int
    """Inner steps."""
    ranks: Ranks = ALONE
    """That share the run."""
    on_step: OnStep = go_on
    checkpointer: RunCheckpointer | None = None
    note: Callable[[str], None] = unsaid
    """Is told what a person should know of how the run is computed."""

    def segments(self) -> Iterator[Segment]:
        """The stretches of the horizon on which every hyperparameter reads the same buckets."""
        return self.problem.space.segments(self.horizon)

    @cached_property
    def hyperparameters(self) -> Tensor:
        """h [rows, H] over the horizon, on the device after one copy: `Segment.row` is a step's row."""
        space = self.problem.space
        steps = (step for segment in self.segments() for step in segment.steps_read)
        readings = (space.readings(step, self.horizon) for step in steps)
        numbers = torch.stack([self.problem.numbers(each, self.values) for each in readings])
        return to_device(numbers, self.problem.device)
