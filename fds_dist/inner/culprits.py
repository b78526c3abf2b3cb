"""Which module is to blame where a network differs from one call to the next, from plain PyTorch, or in its second
derivative."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map, tree_map_only

from fds_dist.common.batch import tensors_in

MOST_CALLS = 300
"""Calls of modules that are looked at; larger networks are named by their first ones alone."""
DIFFERS = 1e-2
"""Relative difference from which on a module's second derivative is wrong: what was met is off by 2 % and more."""
STEP = 1e-6
"""Of the differences of gradients, relative to the size of inputs and parameters."""


@dataclass(frozen=True)
class Call:
    """One call of one module within a forward pass, in the order in which they end."""

    name: str
    module: nn.Module
    arguments: tuple[Any, Any]
    """Its positional and its keyword arguments."""
    output: list[Tensor]

    @property
    def inputs(self) -> list[Tensor]:
        """The tensors among its arguments."""
        return tensors_in(self.arguments)

    def __str__(self) -> str:
        return f"{self.name or 'the network'} ({type(self.module).__name__})"


def calls_within(module: nn.Module, run: Callable[[], object]) -> list[Call]:
    """The calls of `module` and all its parts while `run` runs, inner ones before those that contain them."""
    calls: list[Call] = []

    def note(name: str) -> Callable[..., None]:
        def hook(part: nn.Module, positions: Any, keywords: Any, output: Any) -> None:
            if len(calls) < MOST_CALLS:
                calls.append(Call(name, part, _copy((positions, keywords)), tensors_in(_copy(output))))

        return hook

    handles = [part.register_forward_hook(note(name), with_kwargs=True) for name, part in module.named_modules()]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return calls


def first_difference(ours: list[Call], reference: list[Call], tolerance: float = 0.0) -> str:
    """The first module that gives another output for the same inputs in both passes; "" if there is none."""
    for one, other in zip(ours, reference, strict=False):
        if one.name != other.name:
            return ""
        if _same(one.inputs, other.inputs, tolerance) and not _same(one.output, other.output, tolerance):
            return str(one)
    return ""


def wrong_second_derivative(calls: list[Call]) -> str:
    """The innermost module whose Hessian-vector product is not a difference of its gradients; "" if none is found.

    Each is called by itself, on the inputs that it had, in float64 where the network is.
    """
    for call in calls:
        inputs = [tensor for tensor in call.inputs if tensor.is_floating_point()]
        parameters = [parameter for parameter in call.module.parameters() if parameter.requires_grad]
        if not inputs:
            continue
        try:
            error = _second_derivative_error(call, inputs, parameters)
        except (RuntimeError, TypeError, ValueError):  # it does not run by itself
            continue
        if error > DIFFERS:
            return str(call)
    return ""


def _second_derivative_error(call: Call, inputs: list[Tensor], parameters: list[nn.Parameter]) -> float:
    start = [tensor.detach().clone() for tensor in (*inputs, *parameters)]
    random = torch.Generator().manual_seed(0)
    along = [torch.randn(part.shape, generator=random, dtype=torch.float64).to(part) for part in start]
    along = [
        direction * (part.norm() / direction.norm().clamp_min(1e-30))
        for part, direction in zip(start, along, strict=True)
    ]

    def gradient(moved: float, create_graph: bool = False) -> tuple[list[Tensor], list[Tensor]]:
        points = [(part + moved * direction) for part, direction in zip(start, along, strict=True)]
        leaves = [point.requires_grad_() for point in points[: len(inputs)]]
        with torch.no_grad():
            for parameter, point in zip(parameters, points[len(inputs) :], strict=True):
                parameter.copy_(point)
        torch.manual_seed(0)
        moved_inputs = dict(zip(map(id, inputs), leaves, strict=True))
        positions, keywords = tree_map(lambda leaf: moved_inputs.get(id(leaf), leaf), call.arguments)
        outputs = [out for out in tensors_in(call.module(*positions, **keywords)) if out.requires_grad]
        weight = torch.Generator().manual_seed(1)
        value = sum(
            (out * torch.rand(out.shape, generator=weight, dtype=torch.float64).to(out)).sum() for out in outputs
        )
        variables = [*leaves, *parameters]
        found = torch.autograd.grad(value, variables, create_graph=create_graph, materialize_grads=True)  # type: ignore[arg-type]
        return list(found), variables

    gradients, variables = gradient(0.0, create_graph=True)
    pairs = [(g, d) for g, d in zip(gradients, along, strict=True) if g.requires_grad]
    products = [torch.zeros_like(part) for part in start]
    if pairs:
        outputs, directions = zip(*pairs, strict=True)
        products = list(torch.autograd.grad(outputs, variables, directions, materialize_grads=True))
    ahead, behind = gradient(STEP)[0], gradient(-STEP)[0]
    with torch.no_grad():
        for parameter, point in zip(parameters, start[len(inputs) :], strict=True):
            parameter.copy_(point)
    differences = [(a - b) / (2 * STEP) for a, b in zip(ahead, behind, strict=True)]
    size = sum(float(part.norm()) ** 2 for part in differences) ** 0.5
    off = sum(float((p - d).norm()) ** 2 for p, d in zip(products, differences, strict=True)) ** 0.5
    scale = sum(float(part.detach().norm()) ** 2 for part in gradients) ** 0.5
    return off / size if size > 1e-6 * scale else 0.0


def _copy(tree: Any) -> Any:
    return tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), tree)


def _same(ours: list[Tensor], reference: list[Tensor], tolerance: float) -> bool:
    if len(ours) != len(reference):
        return False
    return all(
        a.shape == b.shape
        and (torch.equal(a, b) or (tolerance > 0 and bool((a - b).double().norm() <= tolerance * b.double().norm())))
        for a, b in zip(ours, reference, strict=True)
    )
