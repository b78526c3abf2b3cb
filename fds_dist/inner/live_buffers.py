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
from fds_dist.tangents import Buffers, Part, differentiate
from fds_dist.tangents.methods import TrialPoint
from fds_dist.tasks.base import validation_loss

NUDGE = 0.01
"""By which share buffers are moved to see whether a loss depends on them."""

STEP, TOLERANCE = 1e-3, 0.05
"""Of central differences of the buffers: in float32 rounding (1e-7 / 1e-3) and curvature (1e-6) stay far below; what is
hidden from derivatives is most of a buffer's change."""


def live_buffers(problem: Problem, point: TrialPoint, val_part: Part) -> tuple[str, ...]:
    """The names of all floating-point buffers that a training step moves, if any loss depends on them; else none.

    All or nothing: a buffer that needs no derivative costs some memory, one that lacks it a wrong hypergradient.

    Args:
        point: a point of the training loss.
        val_part: a batch of the validation loss.
    """
    network = point.loss.network
    with torch.no_grad():
        network.seed(0)
        _, after = point.loss(point.weights, point.theta, point.buffers, point.part)
        moving = [
            name
            for name, buffer in point.buffers.items()
            if buffer.is_floating_point() and not torch.equal(buffer, after[name])
        ]
        if not moving:
            return ()
        nudged = {name: buffer + NUDGE * (buffer.abs() + NUDGE) for name, buffer in after.items() if name in moving}

        def training(buffers: Buffers) -> Tensor:
            network.seed(0)
            return point.loss(point.weights, point.theta, buffers, point.part)[0]

        def validation(buffers: Buffers) -> Tensor:
            output, _ = network(point.weights, buffers, val_part.inputs)
            return validation_loss(problem.task)(output, val_part.targets)

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
    direction = torch.randn(len(point.weights), generator=generator("live buffers"), dtype=torch.float64)
    direction = direction.to(point.weights) * point.weights.norm() / len(point.weights) ** 0.5
    seen = _seen_by_reverse(point, direction) if reverse else _seen_by_forward(point, direction)
    with torch.no_grad():
        ahead, behind = (_after(point, point.weights + sign * STEP * direction) for sign in (1, -1))
    for name in point.loss.network.live:
        difference = (ahead[name] - behind[name]) / (2 * STEP)
        if (seen[name] - difference).norm() > TOLERANCE * difference.norm() + TOLERANCE**2 * point.buffers[name].norm():
            problem = f"the buffer {name} depends on the weights, hidden from derivatives, and reaches a loss"
            if reverse:
                raise UserError(Fault("estimator", f"{problem}: reverse mode would be wrong", "estimator=forward"))
            raise UserError(Fault("model", problem, "an update of it without detach and .data"))


def _after(point: TrialPoint, weights: Tensor) -> Buffers:
    point.loss.network.seed(0)
    return point.loss(weights, point.theta, point.buffers, point.part)[1]


def _seen_by_forward(point: TrialPoint, direction: Tensor) -> Buffers:
    """Directional derivatives of the live buffers after a step, by forward mode."""
    live = point.loss.network.live

    def update(weights: Tensor) -> Buffers:
        after = _after(point, weights)
        return {name: after[name] for name in live}

    return jvp(update, (point.weights,), (direction,))[1]


def _seen_by_reverse(point: TrialPoint, direction: Tensor) -> Buffers:
    """The same by reverse mode, twice: the derivative of v·J by v."""
    leaf = point.weights.detach().requires_grad_()
    after, seen = _after(point, leaf), {}
    for name in point.loss.network.live:
        if not after[name].requires_grad:
            seen[name] = torch.zeros_like(after[name])
            continue
        v = torch.zeros_like(after[name]).requires_grad_()
        (pulled,) = differentiate(after[name], leaf, v, create_graph=True)
        (seen[name],) = differentiate(pulled, v, direction, materialize_grads=True, retain_graph=True)
    return seen
