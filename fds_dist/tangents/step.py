"""One tangent step: the JVP of the inner update, for a chunk of tangents; values of parameter groups; skipped steps.

Shapes: D = weights, S = those in the columns at hand (all D, unless they are sharded), G = parameter groups,
H = numbers in use (of all hyperparameters), C = tangents in the chunk.

The inner step is w, s ← U(w, s, g, h). Its tangent along element k of λ is the JVP of the same function along
(dw_k, ds_k, dg_k, dh_k), dh_k being one-hot where the bucket of k is in use. For SGD with momentum this is equation 3
of FDS (arXiv 2007.07869); here no optimizer needs a rule of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from math import ceil
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp, vmap
from torch.utils._pytree import tree_map

from fds_dist.common.flat import FlatLayout
from fds_dist.distributed.in_flight import arrived
from fds_dist.schedule.groups import assigned, base_of, group_of, name_in
from fds_dist.tangents.clipping import Clipping, unchanged
from fds_dist.tangents.optimizers import InnerOptimizer, judged, judges_average
from fds_dist.tangents.parts import Asked, Chunk, SummedPoint

Update = Callable[[Tensor, Any, Tensor, Tensor], tuple[Tensor, Any]]
"""(w [D], optimizer state, g [D], h [H]) → new w and state."""

Primals = tuple[Tensor, Any, Tensor, Tensor]
"""w [D], optimizer state, g [D], h [H]: what an update is a function of."""


def inner_update(
    optimizer: InnerOptimizer,
    columns: Mapping[str, int],
    clip: Clipping = unchanged,
    groups: WeightGroups | None = None,
) -> Update:
    """U as a function of tensors alone: `columns` are the places of the optimizer's hyperparameters in `h`.

    U clips g by `clip` first. With `groups` the copies of a hyperparameter in them (`lr.norm_and_bias`, `lr.rest`)
    become one tensor [G], spread over the weights.
    """
    per_group = {base_of(name) for name in columns if group_of(name)}

    def update(weights: Tensor, state: Any, gradient: Tensor, h: Tensor) -> tuple[Tensor, Any]:
        gradient = clip(gradient)
        values = {name: h[column] for name, column in columns.items()}
        if groups is None:
            return optimizer.update(weights, state, gradient, values)
        values |= {base: groups.stacked(base, values) for base in per_group}
        return optimizer.update(weights, state, gradient, values, groups.per_weight)

    return update


def remembered(tangents: Any, discount: float) -> Any:
    """γ·Z of a pytree of tangents: what a step begins with. With γ = 1 they are left as they are."""
    return tangents if discount == 1 else tree_map(lambda tensor: tensor * discount, tangents)


def gradient_tangents(
    point: SummedPoint,
    chunks: Iterable[Chunk],
    theta_size: int,
    discount: float = 1.0,
    clip: float | None = None,
) -> Iterator[Asked]:
    """Asks for dg [C, S], and db' of the live buffers, of each of the `chunks`, which are `remembered`.

    Without memory and hyperparameters inside the loss all of them are zero, and no product is asked for.

    Args:
        theta_size: P, the number of hyperparameters inside the loss.
        discount: γ.
        clip: the elementwise bound on dg.
    """
    if discount == 0 and theta_size == 0:
        return ((arrived(torch.zeros_like(dw)), buffers) for dw, _, buffers in chunks)
    if clip is None:
        return point.asked(chunks)
    bounded = partial(torch.clamp, min=-clip, max=clip)
    return ((products.then(bounded), after) for products, after in point.asked(chunks))


def tangent_step(
    update: Update,
    primals: Primals,
    tangents: tuple[Tensor, Any, Tensor, Tensor],
    vectorize: bool,
) -> tuple[Tensor, Any]:
    """New tangents dw [C, D] and ds [C, ...] from `tangents` = (dw [C, D], ds [C, ...], dg [C, D], dh [C, H]).

    One at a time (`vectorize` off) gives the same bits whatever C is.
    """

    weights, state, gradient, h = primals
    numbers = h.clone()  # h is a row of all steps' numbers, and each tangent of a view would be as large as all of them

    def push(*directions: Any) -> tuple[Tensor, Any]:
        return jvp(update, (weights, state, gradient, numbers), directions)[1]

    return _rows(push, tangents, vectorize)


def judged_tangents(
    optimizer: InnerOptimizer, primals: tuple[Tensor, Any], tangents: tuple[Tensor, Any], vectorize: bool
) -> Tensor:
    """Tangents [C, D] of what is validated of w [D] and s, the `primals`, from `tangents` = (dw [C, D], ds [C, ...]).

    As for `tangent_step`, one at a time gives the same bits whatever C is.
    """
    if not judges_average(optimizer):
        return tangents[0]

    def push(*directions: Any) -> Tensor:
        return jvp(partial(judged, optimizer), primals, directions)[1]

    return _rows(push, tangents, vectorize)


def _rows(push: Callable[..., Any], tangents: tuple[Any, ...], vectorize: bool) -> Any:
    """`push` of each row of the tensors in `tangents`, all at once where `vectorize`."""
    if vectorize:
        return vmap(push)(*tangents)
    count = len(tangents[0])
    rows = [push(*tree_map(lambda tensor, row=row: tensor[row], tangents)) for row in range(count)]
    return tree_map(lambda *parts: torch.stack(parts), *rows)


@dataclass(frozen=True)
class WeightGroups:
    """The group of each weight in some columns of the flat vector."""

    names: tuple[str, ...]  # [G]
    of_weight: Tensor  # [S] positions in `names`; 32 bits, since there is one per weight

    @classmethod
    def of(
        cls, patterns: Mapping[str, str], layout: FlatLayout, columns: slice, device: torch.device | str
    ) -> WeightGroups:
        """The groups with these `patterns` on the weights of `layout` in `columns`.

        Raises:
            UserError: the patterns do not fit the names of the parameters.
        """
        group, names = assigned(patterns, layout.names), tuple(patterns)
        of_parameter = torch.tensor([names.index(group[name]) for name in layout.names], dtype=torch.int32)
        of_weight = of_parameter.repeat_interleave(torch.tensor(layout.sizes), output_size=layout.size)
        return cls(names, of_weight[columns].to(device))

    def stacked(self, base: str, values: Mapping[str, Tensor]) -> Tensor:
        """The copies of the hyperparameter `base` in `values` (by name, [] each) as one tensor [G]."""
        return torch.stack([values[name_in(base, group)] for group in self.names])

    def per_weight(self, value: Tensor) -> Tensor:
        """A value of all weights [] as it is, values of the groups [G] as one per weight [S].

        By `index_select`: indexing with brackets takes four times as long, and its reverse mode on a GPU is a sort.
        """
        return value if value.dim() == 0 else value.index_select(0, self.of_weight)


@dataclass(frozen=True)
class Pruning:
    """Skips the fraction `ratio` of each window's steps; ratio 0 skips none."""

    mode: str = "alternate"
    """`alternate` keeps the first step of each period; `truncate` skips the first part of each window."""
    ratio: float = 0.0

    def keeps(self, offset: int, window: int) -> bool:
        """Whether tangents are updated on step `offset` (from 0) of a window of `window` steps."""
        kept_share = 1 - Fraction(str(self.ratio))  # exact: 0.6 skips 3 of 5, not 3 ± rounding
        if self.mode == "truncate":
            return offset >= window - ceil(window * kept_share)
        return ceil((offset + 1) * kept_share) > ceil(offset * kept_share)
