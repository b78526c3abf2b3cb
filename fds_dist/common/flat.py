"""All weights of a network as one vector with named views.

Shapes: D = number of weights; K = number of tangents.

The optimizer, its tangents, fingerprints and checkpoints all work on vectors of length D (or matrices K×D), so that
they are the same few operations whatever the network is. Only the network itself sees named tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class FlatLayout:
    """Where each named tensor lies in the flat vector: tensor `i` fills `[offsets[i], offsets[i] + sizes[i])`."""

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> FlatLayout:
        """The layout that holds `tensors` in their order, without gaps."""
        return cls(tuple(tensors), tuple(tensor.shape for tensor in tensors.values()))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of elements of each tensor."""
        return tuple(prod(shape) for shape in self.shapes)

    @property
    def offsets(self) -> tuple[int, ...]:
        """First position of each tensor in the vector."""
        return tuple(accumulate(self.sizes, initial=0))[:-1]

    @property
    def size(self) -> int:
        """D, the length of the vector."""
        return sum(self.sizes)

    def flatten(self, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """A new vector [D] with the values of `tensors`, detached from their graph."""
        parts = [tensors[name].detach().reshape(-1) for name in self.names]
        return torch.cat(parts).to(device=device, dtype=dtype, copy=True)

    def views(self, vector: Tensor) -> dict[str, Tensor]:
        """Named views of `vector` [D]; differentiable, and usable inside `torch.func` transforms."""
        parts: Sequence[Tensor] = vector.split(self.sizes)
        return {name: part.view(shape) for name, shape, part in zip(self.names, self.shapes, parts, strict=True)}


def trainable_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained: those that require a gradient, by qualified name, shared ones once.

    Raises:
        ValueError: the module has none, or they are not all floating point.
    """
    parameters = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    if not parameters:
        raise ValueError(f"{type(module).__name__} has no parameter that requires a gradient")
    wrong = [name for name, parameter in parameters.items() if not parameter.is_floating_point()]
    if wrong:
        raise ValueError(f"parameters that are not floating point cannot be trained: {', '.join(wrong)}")
    return parameters
