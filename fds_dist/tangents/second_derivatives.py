"""Operators whose second derivative PyTorch itself gets wrong, without an error (torch 2.11 to 2.13).

`write_out` swaps the modules among them for the same mathematics in elementary operations, which have right ones.
`wrong_operators` knows the others by their nodes in the autograd graph, for a refusal before any training.
`tests/witness/test_operators.py` holds every operator of `torch.nn` against differences of plain gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn import functional as F
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm


def elementary_weight_norm(v: Tensor, g: Tensor, dim: int) -> Tensor:
    """g·v/|v|, the norm |v| over all axes but `dim` (−1: over all axes).

    The backward formula of PyTorch's fused kernel saves |v| and takes it for a constant when differentiated again.
    """
    rows = v.flatten() if dim == -1 else v.movedim(dim, 0).reshape(v.shape[dim], -1)
    return v * (g / torch.linalg.vector_norm(rows, dim=-1).reshape(g.shape))


class WrittenOutWeightNorm(_WeightNorm):
    """`torch.nn.utils.parametrizations.weight_norm` in elementary operations."""

    def forward(self, weight_g: Tensor, weight_v: Tensor) -> Tensor:
        """The weight of direction `weight_v` and length `weight_g`."""
        return elementary_weight_norm(weight_v, weight_g, self.dim)


class WrittenOutWeightNormHook(WeightNorm):
    """`torch.nn.utils.weight_norm` in elementary operations."""

    def compute_weight(self, module: nn.Module) -> Tensor:
        """The weight of direction `NAME_v` and length `NAME_g` of `module`."""
        g, v = (getattr(module, f"{self.name}_{part}") for part in "gv")
        return elementary_weight_norm(v, g, self.dim)


class WrittenOutHardsigmoid(nn.Hardsigmoid):
    """`nn.Hardsigmoid` in elementary operations: PyTorch has no second derivative of the fused one at all."""

    def forward(self, input: Tensor) -> Tensor:
        """min(max(x + 3, 0), 6)/6, in place where the module is."""
        output = F.relu6(input + 3) / 6
        return input.copy_(output) if self.inplace else output


WRITTEN_OUT: dict[type, type] = {
    _WeightNorm: WrittenOutWeightNorm,
    WeightNorm: WrittenOutWeightNormHook,
    nn.Hardsigmoid: WrittenOutHardsigmoid,
}
"""By the class of a module or of a hook before its forward pass; the values agree to rounding."""


def write_out(module: nn.Module) -> None:
    """Makes the layers of `module` whose second derivatives are wrong compute by elementary operations.

    Only their classes change, so that copies, checkpoints of activations and later parametrizations go on as before.
    Subclasses of the user's own stay as they are.
    """
    for layer in module.modules():
        for part in (layer, *layer._forward_pre_hooks.values()):
            if type(part) in WRITTEN_OUT:
                part.__class__ = WRITTEN_OUT[type(part)]


def _multiplies(node: Node) -> bool:
    return getattr(node, "_saved_reduce", "prod") == "prod"


def _collides(axes: int) -> Callable[[Node], bool]:
    """Whether an unpooling writes two values to one place; `axes` are the spatial ones of its indices."""

    def collides(node: Node) -> bool:
        places = node._saved_indices.flatten(-axes).sort().values  # type: ignore[attr-defined]
        return bool((places[..., 1:] == places[..., :-1]).any())

    return collides


def _of_zero_vectors(node: Node) -> bool:
    """Whether a 2-norm (1-norms and 3-norms are right) met a vector of zeros, which gives NaN."""
    return node._saved_ord == 2 and bool((node._saved_result == 0).any())  # type: ignore[attr-defined]


def _of_zeros(node: Node) -> bool:
    return bool((node._saved_self == 0).any())  # type: ignore[attr-defined]


@dataclass(frozen=True)
class WrongOperator:
    """An operator whose second derivative is wrong by some of the methods."""

    node: str
    """Name of its node in the autograd graph, without the number at the end."""

    name: str
    """What the user calls it."""

    methods: tuple[str, ...]
    """Names in `METHODS` that get it wrong; a method that raises an error by itself need not be among them."""

    instead: str
    """What a user can do where no method is right."""

    applies: Callable[[Node], bool] = lambda node: True
    """Whether this use of the operator is a wrong one."""


JVP, DOUBLE_BACKWARD = "jvp", "double_backward"
_CHUNKED = "GeneratedBackwardFor_torch_nn__linear_cross_entropy_batch_chunked_defaultBackward"
_OVERLAPPING = "max_unpool of overlapping windows"
WRONG_OPERATORS = (
    WrongOperator(
        "WeightNormInterfaceBackward",
        "torch._weight_norm",
        (JVP, DOUBLE_BACKWARD),
        "torch.nn.utils.parametrizations.weight_norm, or g * v / norm(v) written out",
    ),
    WrongOperator(_CHUNKED, "linear_cross_entropy", (JVP, DOUBLE_BACKWARD), "linear_cross_entropy without `options`"),
    WrongOperator("CholeskyInverseBackward", "cholesky_inverse", (JVP,), "torch.cholesky_solve of the identity"),
    WrongOperator("TriangularSolveBackward", "triangular_solve", (JVP,), "torch.linalg.solve_triangular"),
    WrongOperator(
        "ScatterReduceBackward", "scatter_reduce(reduce='prod')", (JVP,), "products without scatter_reduce", _multiplies
    ),
    WrongOperator("AsStridedScatterBackward", "as_strided_scatter", (DOUBLE_BACKWARD,), "torch.scatter"),
    WrongOperator(
        "LinalgVectorNormBackward", "the norm of a zero vector", (DOUBLE_BACKWARD,), "no such vectors", _of_zero_vectors
    ),
    WrongOperator("SincBackward", "sinc of 0", (DOUBLE_BACKWARD,), "sin(πx)/(πx) away from 0", _of_zeros),
    WrongOperator("MaxUnpool2DBackward", _OVERLAPPING, (DOUBLE_BACKWARD,), "a stride of kernel_size", _collides(2)),
    WrongOperator("MaxUnpool3DBackward", _OVERLAPPING, (DOUBLE_BACKWARD,), "a stride of kernel_size", _collides(3)),
)


def wrong_operators(nodes: Iterable[Node]) -> dict[str, WrongOperator]:
    """For each method that is wrong somewhere, the first operator that it gets wrong among the `nodes` of a graph."""
    by_name: dict[str, list[Node]] = {}
    for node in nodes:
        by_name.setdefault(node.name().rstrip("0123456789"), []).append(node)
    by_method: dict[str, WrongOperator] = {}
    for wrong in WRONG_OPERATORS:
        if any(map(wrong.applies, by_name.get(wrong.node, ()))):
            by_method = dict.fromkeys(wrong.methods, wrong) | by_method
    return by_method
