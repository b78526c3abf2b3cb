"""One operator at a time as a network whose every weight is one of its arguments, and second derivatives of it.

The reference never meets `Network`: central differences of `torch.autograd.grad` of the plain module, in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from problems import CPU
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fds_dist.common.batch import Part
from fds_dist.common.faults import UserError
from fds_dist.tangents import METHODS, Network, PointInputs, TrainingLoss
from fds_dist.tangents.methods import TrialPoint, choose_method

SEED = 3
"""Of the numbers that an operator draws in its forward pass (dropout, RReLU)."""

VARIANTS = {"jvp": ("jvp", False), "jvp_vectorized": ("jvp", True), "double_backward": ("double_backward", False)}
"""By name: (method, whether tangents are batched)."""

NO_BATCH = Part((torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)))

Layout = Callable[[Tensor], Tensor]
Build = Callable[[], "Operator"]


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
    return (slopes * output).sum() + 0.3 * (output - 0.1 * slopes).square().sum()


def built(build: Build) -> Operator:
    """The same operator each time, at the same point, in training mode where it is no entry's own choice."""
    torch.default_generator.manual_seed(0)
    return build().double()


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """All numbers as one vector."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def trained(operator: Operator) -> list[nn.Parameter]:
    return [parameter for parameter in operator.parameters() if parameter.requires_grad]


def plain_gradient(build: Build, weights: Tensor, layout: Layout = as_it_is) -> Tensor:
    """∇L [D] of the plain module at `weights` [D]."""
    operator = built(build)
    operator.layout = layout
    parameters = trained(operator)
    nn.utils.vector_to_parameters(weights.clone(), parameters)
    torch.default_generator.manual_seed(SEED)
    loss = curved_loss(operator(NO_BATCH.inputs), NO_BATCH.targets)
    return flat(torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True))


@dataclass
class Point:
    """An operator at its point: where derivatives are taken, along which direction, and plain PyTorch's answers."""

    build: Build
    layout: Layout = as_it_is
    weights: Tensor = field(init=False)  # [D]
    direction: Tensor = field(init=False)  # [D] v
    gradient: Tensor = field(init=False)  # [D] ∇L
    difference: Tensor = field(init=False)  # [D] H·v by central differences of gradients

    def __post_init__(self) -> None:
        self.weights = flat(trained(built(self.build)))
        torch.default_generator.manual_seed(1)
        self.direction = torch.randn_like(self.weights)
        self.gradient = plain_gradient(self.build, self.weights, self.layout)
        h = 1e-6
        ahead, behind = (
            plain_gradient(self.build, self.weights + sign * h * self.direction, self.layout) for sign in (1, -1)
        )
        self.difference = (ahead - behind) / (2 * h)

    def loss(self, dtype: torch.dtype = torch.float64) -> TrainingLoss:
        """The loss as the engine sees it."""
        operator = built(self.build)
        operator.layout = self.layout
        return TrainingLoss(Network(operator, dtype, CPU), curved_loss)

    def trial(self, vectorize: bool) -> TrialPoint:
        """Where `choose_method` tries its methods."""
        loss = self.loss()
        buffers = loss.network.initial_buffers
        return TrialPoint(loss, self.weights, self.weights.new_zeros(0), buffers, NO_BATCH, vectorize)

    def chosen(self, variant: str) -> str:
        """What `choose_method` has to say: "" where the method may be used, else the refusal."""
        method, vectorize = VARIANTS[variant]
        try:
            choose_method(method, self.trial(vectorize))
        except UserError as error:
            return str(error)
        return ""

    def product(self, variant: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
        """H·v [D] and ∇L [D] by one of `VARIANTS`, in `dtype`."""
        method, vectorize = VARIANTS[variant]
        loss, weights, direction = self.loss(dtype), self.weights.to(dtype), self.direction.to(dtype)
        buffers = loss.network.initial_buffers
        point = METHODS[method](PointInputs(loss, weights, weights.new_zeros(0), buffers, NO_BATCH, vectorize, SEED))
        directions = torch.stack([direction, 0.5 * direction]) if vectorize else direction[None]
        products, _ = point.products(directions, weights.new_zeros(len(directions), 0), {})
        return products[0], point.gradient

    def pulled_back(self) -> Tensor:
        """H·v [D] as the reverse estimator takes it: v pulled back through a step w − ∇L(w) is v − H·v."""
        loss = self.loss()
        leaf = self.weights.detach().requires_grad_()
        loss.network.seed(SEED)
        value, _ = loss(leaf, leaf.new_zeros(0), loss.network.initial_buffers, NO_BATCH)
        (gradient,) = loss.network.differentiate(value, leaf, create_graph=True, materialize_grads=True)
        (adjoint,) = loss.network.differentiate(leaf - gradient, leaf, self.direction)
        return self.direction - adjoint
