"""Training over a horizon, with the tangents that this rank owns pushed along.

Shapes: D = weights, S = those whose state this rank of the `data` axis keeps (all, if it is alone), K = learned
numbers, H = numbers in use at a step, R = tangents that this rank of the `tangent` axis owns, in order of their first
steps, so that the live ones are a prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from torch import Tensor
from torch.utils._pytree import tree_map

from fds_dist.inner.advance import Steps
from fds_dist.inner.directions import Along, Directions, along_elements
from fds_dist.inner.run import InnerRun, InnerState, Tangents
from fds_dist.inner.training import Training
from fds_dist.schedule.shapes import stretches
from fds_dist.schedule.space import Hyperparameter
from fds_dist.tangents.step import Pruning


def zero_tangents(local: InnerState, elements: Sequence[int], live: Sequence[str]) -> Tangents:
    """Tangents of an initial state, which does not depend on λ.

    Args:
        local: the state with this rank's columns of the weights.
        live: names of the live buffers.
    """
    rows = len(elements)

    def zeros(tensor: Tensor) -> Tensor:
        return tensor.new_zeros((rows, *tensor.shape))

    buffers = {name: zeros(local.buffers[name]) for name in live}
    return Tangents(tuple(elements), zeros(local.weights), tree_map(zeros, local.optimizer), buffers)


def run_horizon(run: InnerRun, elements: Sequence[int] = (), along: Along | None = None) -> tuple[Training, Tangents]:
    """Trains over the horizon and pushes the tangents of `elements` along, which are in order of their first steps.

    Ends early where `on_step` says so. Goes on from where the checkpointer kept it.

    Args:
        along: for tangents along other directions of λ, which all live from the first step on; `elements` then are
            their numbers.
    """
    problem, training = run.problem, Training(run)
    tangents = zero_tangents(training.local_state, elements, problem.live_buffers)
    with run.checkpointer or nullcontext():
        if run.checkpointer is not None:
            training.state, tangents = run.checkpointer.restore(training.state, tangents)
        _train(training, tangents, along)
    return training, tangents


def _train(training: Training, tangents: Tangents, along: Along | None) -> None:
    """Takes the steps that are left of `run_horizon`."""
    run, problem, elements, steps = training.run, training.problem, tangents.elements, Steps(training)
    starts = problem.space.starts(run.horizon)
    owners = [problem.space.elements[element].owner for element in elements]
    for segment in run.segments():
        live = len(elements) if along else sum(starts[element] <= segment.start for element in elements)
        directions = Directions(problem, segment, run.horizon, along or along_elements(elements[:live]))
        for step in range(max(segment.start, training.state.step), segment.stop):
            h = run.hyperparameters[segment.row(step)]
            rows = updated_rows(problem.tangents.pruning, owners[:live], step, run.horizon)
            loss = steps.take(h, tangents, directions.at(step), rows)
            if not run.on_step(training.state, loss):
                return
            if run.checkpointer is not None:
                run.checkpointer.keep(training.state, tangents)


def updated_rows(pruning: Pruning, owners: Sequence[Hyperparameter], step: int, horizon: int) -> Sequence[int]:
    """The rows whose tangents take part in `step`: all, but for those that pruning skips.

    `owners` are the hyperparameters that the rows' elements of λ belong to.
    """
    if not pruning.ratio:
        return range(len(owners))
    keeps = {}
    for owner in set(owners):
        stretch = next(stretch for stretch in stretches(owner.shaped, horizon) if step in stretch)
        keeps[owner] = pruning.keeps(step - stretch.start, len(stretch))
    return [row for row, owner in enumerate(owners) if keeps[owner]]
