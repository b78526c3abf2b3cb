"""Which buffers of a network depend on its weights and reach a loss, so that they need derivatives of their own.

Batch-norm's running statistics do so where validation reads them; the power iteration of spectral norm does in every
training step; the tables of rotary embeddings never do.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import jvp

from fds_dist.common.faults import Fault, UserError
from fds_dist.common.randomness import generator
from fds_dist.inner.problem import Problem
from fds_dist.tangents import Buffers, Part
from fds_dist.tangents.methods import TrialPoint
from fds_dist.tasks.base import validation_loss
from fds_dist.tasks.losses import OnBatch

NUDGE = 0.01
"""By which share buffers are moved to see whether a loss depends on them."""

STEPS, TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}, 0.05
"""Of central differences of the buffers: in float32 rounding (1e-7 / 1e-3) and curvature (1e-6) stay far below, in
float64 also the ReLUs that switch in a deep network; what is hidden from derivatives is most of a buffer's change."""


def live_buffers(problem: Problem, point: TrialPoint, val_part: Part) -> tuple[str, ...]:
    """The names of all floating-point buffers that a training step moves, if any of them depends on the weights and a
    loss depends on them; else none.

    All or nothing: a buffer that needs no derivative costs some memory, one that lacks it a wrong hypergradient.

    Args:
        point: a point of the training loss.
        val_part: a batch of the validation loss.
    """
    network = point.loss.network
    with torch.no_grad():
        network.seed(0)
        _, after = point.loss(point.weights, point.theta, point.buffers, point.part)
        network.seed(0)
        weights = point.weights + NUDGE * _direction(point.weights, "")
        _, elsewhere = point.loss(weights, point.theta, point.buffers, point.part)
        moving = [
            name
            for name, buffer in point.buffers.items()
            if buffer.is_floating_point()
            and buffer.shape == after[name].shape  # a table that the first call fills grows
            and not torch.equal(buffer, after[name])
        ]
        if all(torch.equal(after[name], elsewhere[name]) for name in moving):
            return ()
        nudged = {name: buffer + NUDGE * (buffer.abs() + NUDGE) for name, buffer in after.items() if name in moving}

        def training(buffers: Buffers) -> Tensor:
            network.seed(0)
            return point.loss(point.weights, point.theta, buffers, point.part)[0]

        def validation(buffers: Buffers) -> Tensor:
            output, _ = network(point.weights, buffers, val_part.inputs)
            return OnBatch(validation_loss(problem.task))(output, val_part.batch)

        reaches = _differs(training, after, nudged)
        network.evaluate(problem.val_batch_norm)
        reaches = reaches or _differs(validation, after, nudged)
        network.train()
    return tuple(moving) if reaches else ()


def _differs(loss: Callable[[Buffers], Tensor], buffers: Buffers, nudged: Buffers) -> bool:
    return not torch.equal(loss(buffers), loss({**buffers, **nudged}))


def check_derivatives(point: TrialPoint, reverse: bool) -> None:
    """Refuses live buffers whose dependence on the weights is hidden (by `detach`, `.data` or, from reverse mode, by
    `no_grad`): their derivatives would be missed without a word.

    Args:
        point: of a network that knows its live buffers.
        reverse: whether reverse mode is to be used, else forward mode.

    Raises:
        UserError: names the first such buffer.
    """
    live, step = point.loss.network.live, STEPS[point.weights.dtype]
    # Away from the initial weights: where a layer starts as zeros, a ReLU behind it stands at its kink.
    weights = point.weights + NUDGE * _direction(point.weights, "start")
    start = {"": weights, **{name: point.buffers[name] for name in live}}
    along = {name: _direction(tensor, name) for name, tensor in start.items()}
    seen = (_seen_by_reverse if reverse else _seen_by_forward)(point, start, along)
    with torch.no_grad():
        moved = [{name: start[name] + sign * step * along[name] for name in start} for sign in (1, -1)]
        ahead, behind = (_after(point, place) for place in moved)
    for name in live:
        difference = (ahead[name] - behind[name]) / (2 * step)
        if (seen[name] - difference).norm() > TOLERANCE * difference.norm() + TOLERANCE**2 * point.buffers[name].norm():
            problem = f"the buffer {name} depends on the weights, hidden from derivatives, and reaches a loss"
            if reverse:
                raise UserError(Fault("estimator", f"{problem}: reverse mode would be wrong", "estimator=forward"))
            raise UserError(Fault("model", problem, "an update of it under no_grad, without detach and .data"))


Place = dict[str, Tensor]
"""The weights, under the empty name, and live buffers."""


def _direction(tensor: Tensor, name: str) -> Tensor:
    """A random direction of the tensor's size."""
    random = torch.randn(tensor.shape, generator=generator("live buffers", name), dtype=torch.float64).to(tensor)
    return random * (tensor.norm() / random.norm() or 1.0)


def _after(point: TrialPoint, place: Place) -> Buffers:
    """The live buffers after a step from `place`."""
    point.loss.network.seed(0)
    buffers = {**point.buffers, **{name: tensor for name, tensor in place.items() if name}}
    _, after = point.loss(place[""], point.theta, buffers, point.part)
    return {name: after[name] for name in point.loss.network.live}


def _seen_by_forward(point: TrialPoint, start: Place, along: Place) -> Buffers:
    """Directional derivatives of the live buffers after a step, by forward mode."""
    return jvp(lambda place: _after(point, place), (start,), (along,))[1]


def _seen_by_reverse(point: TrialPoint, start: Place, along: Place) -> Buffers:
    """The same by reverse mode, twice: the derivative of v·J by v."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in start.items()}
    after, seen = _after(point, leaves), {}
    for name, buffer in after.items():
        if not buffer.requires_grad:
            seen[name] = torch.zeros_like(buffer)
            continue
        v = torch.zeros_like(buffer).requires_grad_()
        pulled = point.loss.network.differentiate(
            buffer, list(leaves.values()), v, create_graph=True, materialize_grads=True
        )
        total = sum((part * direction).sum() for part, direction in zip(pulled, along.values(), strict=True))
        (seen[name],) = point.loss.network.differentiate(total, v, retain_graph=True, materialize_grads=True)
    return seen
