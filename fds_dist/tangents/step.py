"""One tangent step: the JVP of the inner update, for a chunk of tangents.

Shapes: D = weights, H = hyperparameters in use, C = tangents in the chunk.

The inner step is w, s ← U(w, s, g, h). Its tangent along element k of λ is the JVP of the same function along
(dw_k, ds_k, dg_k, dh_k), dh_k being one-hot where the bucket of k is in use. For SGD with momentum this is equation 3
of FDS (arXiv 2007.07869); here no optimizer needs a rule of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp, vmap
from torch.utils._pytree import tree_map

from fds_dist.groups import base_of, group_of
from fds_dist.inner import InnerOptimizer
from fds_dist.tangents.groups import WeightGroups

Update = Callable[[Tensor, Any, Tensor, Tensor], tuple[Tensor, Any]]
"""(w [D], optimizer state, g [D], h [H]) → new w and state."""

Primals = tuple[Tensor, Any, Tensor, Tensor]
"""w [D], optimizer state, g [D], h [H]: what an update is a function of."""


def inner_update(
    optimizer: InnerOptimizer,
    names: tuple[str, ...],
    clip_gradient: float | None,
    groups: WeightGroups | None = None,
) -> Update:
    """U as a function of tensors alone: `names` are the H hyperparameters of `h`.

    With `clip_gradient` = c, U clips g elementwise to ±c; its JVP then is mask ∘ dg, as it should be. With `groups` the
    copies of a hyperparameter in them (`lr.norm_and_bias`, `lr.rest`) become one tensor [G], spread over the weights.
    """
    per_group = {base_of(name) for name in names if group_of(name)}

    def update(weights: Tensor, state: Any, gradient: Tensor, h: Tensor) -> tuple[Tensor, Any]:
        if clip_gradient is not None:
            gradient = gradient.clamp(-clip_gradient, clip_gradient)
        values = dict(zip(names, h.unbind(), strict=True))
        if groups is None:
            return optimizer.update(weights, state, gradient, values)
        values |= {base: groups.stacked(base, values) for base in per_group}
        return optimizer.update(weights, state, gradient, values, groups.per_weight)

    return update


def tangent_step(
    update: Update,
    primals: Primals,
    tangents: tuple[Tensor, Any, Tensor, Tensor],
    vectorize: bool,
) -> tuple[Tensor, Any]:
    """New tangents dw [C, D] and ds [C, ...] from `tangents` = (dw [C, D], ds [C, ...], dg [C, D], dh [C, H]).

    One at a time (`vectorize` off) gives the same bits whatever C is.
    """

    def push(*directions: Any) -> tuple[Tensor, Any]:
        return jvp(update, primals, directions)[1]

    if vectorize:
        return vmap(push)(*tangents)
    count = len(tangents[0])
    rows = [push(*tree_map(lambda tensor, row=row: tensor[row], tangents)) for row in range(count)]
    return tree_map(lambda *parts: torch.stack(parts), *rows)
