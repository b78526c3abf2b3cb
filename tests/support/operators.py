"""One operator at a time as a network whose every weight is one of its arguments, and second derivatives of it.

The reference never meets `Network`: central differences of `torch.autograd.grad` of the plain module, in float64.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from problems import CPU, relative_error
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fds_dist.tangents import METHODS, Network, TrainingLoss, differentiate

SEED = 3
"""Of the numbers that an operator draws in its forward pass (dropout, RReLU)."""

NO_BATCH = (torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.int64))

Layout = Callable[[Tensor], Tensor]


def as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def transposed(tensor: Tensor) -> Tensor:
    """The same values with the last two axes swapped in memory."""
    return tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor


def channels_last(tensor: Tensor) -> Tensor:
    """The same values with the channels (axis 1) last in memory, where there are two or three spatial axes."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return tensor.contiguous(memory_format=formats[tensor.dim()]) if tensor.dim() in formats else tensor


class Operator(nn.Module):
    """Calls `function` (a module of its own weights, or any function) with `arguments`, which are weights too."""

    def __init__(self, function: Callable[..., object], *arguments: Tensor) -> None:
        super().__init__()
        self.function = function
        self.arguments = nn.ParameterList(arguments)
        self.layout: Layout = as_it_is

    def forward(self, x: Tensor) -> Tensor:
        """All floating-point numbers that come out, as one vector; the input is ignored."""
        outputs = self.function(*(self.layout(1.0 * argument) for argument in self.arguments))
        numbers = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        return torch.cat([part.flatten() for part in numbers])


def curved_loss(output: Tensor, target: Tensor) -> Tensor:
    """A loss whose gradient differs from output to output, and whose own second derivative is not zero."""
    slopes = torch.arange(1, 1 + len(output)).mul(0.7).sin().to(output)
    return (slopes * output).sum() + 0.3 * (output - 0.1 * slopes).square().mean()


def flat_weights(module: nn.Module) -> Tensor:
    """The weights [D] of a float64 `module`."""
    return nn.utils.parameters_to_vector(p for p in module.parameters() if p.requires_grad).detach()


def plain_gradient(operator: Operator, weights: Tensor) -> Tensor:
    """∇L [D] of a copy of the plain module at `weights` [D]."""
    module = copy.deepcopy(operator)
    trained = [p for p in module.parameters() if p.requires_grad]
    nn.utils.vector_to_parameters(weights, trained)
    torch.manual_seed(SEED)
    loss = curved_loss(module(*NO_BATCH[:1]), NO_BATCH[1])
    gradients = torch.autograd.grad(loss, trained, allow_unused=True, materialize_grads=True)
    return nn.utils.parameters_to_vector(gradients)


def difference(operator: Operator, weights: Tensor, direction: Tensor) -> Tensor:
    """H·v [D] by central differences of plain gradients."""
    h = 1e-6
    ahead, behind = (plain_gradient(operator, weights + sign * h * direction) for sign in (1, -1))
    return (ahead - behind) / (2 * h)


def training_loss(operator: Operator, dtype: torch.dtype = torch.float64) -> TrainingLoss:
    """The loss of a copy of `operator` as the engine sees it."""
    return TrainingLoss(Network(copy.deepcopy(operator), dtype, CPU), curved_loss)


def product(operator: Operator, weights: Tensor, direction: Tensor, variant: str) -> tuple[Tensor, Tensor]:
    """H·v [D] and ∇L [D] by one of `VARIANTS`."""
    loss = training_loss(operator, weights.dtype)
    if variant == "reverse":
        return pulled_back(loss, weights, direction)
    method, vectorize = VARIANTS[variant]
    point = METHODS[method](loss, weights, weights.new_zeros(0), NO_BATCH, SEED, vectorize)
    directions = torch.stack([direction, 0.5 * direction]) if vectorize else direction[None]
    return point.products(directions, weights.new_zeros(len(directions), 0))[0], point.gradient


VARIANTS = {"jvp": ("jvp", False), "jvp_vectorized": ("jvp", True), "double_backward": ("double_backward", False)}
"""By name: (method, whether tangents are batched)."""


def pulled_back(loss: TrainingLoss, weights: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """As `double_backward`, by way of the reverse estimator: v pulled back through a step w − ∇L(w) is v − H·v."""
    leaf = weights.detach().requires_grad_()
    loss.network.seed(SEED)
    value, _ = loss(leaf, leaf.new_zeros(0), NO_BATCH)
    (gradient,) = differentiate(value, leaf, create_graph=True, materialize_grads=True)
    (adjoint,) = differentiate(leaf - gradient, leaf, direction)
    return direction - adjoint, gradient.detach()


def error_of(variant: str, operator: Operator) -> float:
    """|H·v − difference| / |difference| along a random direction; the gradient must be plain PyTorch's, too."""
    weights = flat_weights(operator)
    torch.manual_seed(1)
    direction = torch.randn_like(weights)
    found, gradient = product(operator, weights, direction, variant)
    assert relative_error(gradient, plain_gradient(operator, weights)) < 1e-12  # float64 rounding
    return relative_error(found, difference(operator, weights, direction))
