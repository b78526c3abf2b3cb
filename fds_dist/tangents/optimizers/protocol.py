"""What the inner run needs of an optimizer: a pure update, whose hyperparameters are arguments.

An update is a function of tensors alone, so that `torch.func.jvp` of it is its tangent: no optimizer needs a
hand-derived rule (design of FDS, arXiv 2007.07869, equation 3, does it by hand for SGD with momentum).

Shapes: D = weights, G = parameter groups.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from fds_dist.common.flat import FlatLayout
from fds_dist.common.optimizers import BUILT_IN

PerWeight = Callable[[Tensor], Tensor]
"""Values [] (for all weights) or [G] (one per parameter group) → what broadcasts over the weights [D]."""


def same_for_all(value: Tensor) -> Tensor:
    """The `PerWeight` without parameter groups: values are 0-d, or [D] already."""
    return value


class InnerOptimizer(Protocol):
    """An optimizer. One of a user's own needs `defaults`, `init` and `update`, and may have the optional members.

    Its state is any pytree of tensors (a NamedTuple, say), each a single number [] or one number per weight [D], of the
    weights' dtype.

    Optional members:

    - `bind(layout) -> InnerOptimizer`: for an optimizer that treats each parameter as a whole (the norm of a matrix).
      It returns the same optimizer for weights that lie in the flat vector as `layout`, a `FlatLayout`, says;
      `layout.views(vector)` are the parameters by name. Such an optimizer needs `mesh.data: 1`, as more ranks there
      keep columns of the flat vector, which cut parameters.
    - `for_groups() -> InnerOptimizer`: the same optimizer for parameter groups with values of their own, where its
      state then needs one number per weight in place of a single one.
    - `judged(weights, state) -> Tensor`: what is validated, tested and exported, [D], where that is not the weights
      [D] themselves: an average of them, say. As `update`, a pure function of differentiable operations, and of columns
      it gives the columns.
    - `ties`, names of hyperparameters of which equal values at two steps are a point without a derivative (the highest
      value so far, say): derivatives are then compared at values that differ.
    - `domains`, a mapping from names of hyperparameters to (lowest, highest): their bounds where the config gives none.
    """

    @property
    def name(self) -> str:
        """The name in the config."""
        ...

    @property
    def defaults(self) -> Mapping[str, float]:
        """The names of its hyperparameters with their default values; `lr` is one of them."""
        ...

    @property
    def switches(self) -> Mapping[str, object]:
        """Its fixed settings, to be told with a schedule that was learned for it."""
        ...

    def init(self, weights: Tensor) -> Any:
        """The state before the first step; `weights` [D]."""
        ...

    def update(
        self,
        weights: Tensor,
        state: Any,
        gradient: Tensor,
        h: Mapping[str, Tensor],
        per_weight: PerWeight = same_for_all,
    ) -> tuple[Tensor, Any]:
        """One step: new weights [D] and state from the gradient [D] and the hyperparameters' values `h`.

        A pure function of differentiable operations: nothing is written in place, read out (`.item()`) or detached. A
        root uses `safe_sqrt`, as its derivative is infinite at 0, where second moments begin.

        A value is a 0-d tensor, or [G], one per parameter group, of which `per_weight` makes one per weight [D]. What
        hyperparameters alone go into is computed first, and cheaply, on these.
        """
        ...


class BuiltIn:
    """Name, defaults and switches of a built-in optimizer, from the plain data on it."""

    @property
    def name(self) -> str:
        """The name in the config."""
        raise NotImplementedError

    @property
    def defaults(self) -> Mapping[str, float]:
        """The hyperparameters with their default values."""
        return BUILT_IN[self.name].defaults

    @property
    def domains(self) -> Mapping[str, tuple[float, float]]:
        """The bounds of hyperparameters whose names are its own."""
        return BUILT_IN[self.name].domains

    @property
    def switches(self) -> dict[str, object]:
        """The fixed settings: fields of the class with these names."""
        return {switch: getattr(self, switch) for switch in BUILT_IN[self.name].switches}


@dataclass(frozen=True)
class ByParameter(BuiltIn):
    """A built-in optimizer that treats each parameter as a whole."""

    layout: FlatLayout | None = None

    def bind(self, layout: FlatLayout) -> ByParameter:
        """This optimizer for weights that lie as `layout` says."""
        return replace(self, layout=layout)

    @property
    def known_layout(self) -> FlatLayout:
        """The layout, which `bind` has set."""
        assert self.layout is not None, "bind(layout) comes first"
        return self.layout


def needs_layout(optimizer: InnerOptimizer) -> bool:
    """Whether it treats each parameter as a whole."""
    return hasattr(optimizer, "bind")


def bound(optimizer: InnerOptimizer, layout: FlatLayout, grouped: bool = False) -> InnerOptimizer:
    """The optimizer for weights that lie as `layout` says, with values per group if `grouped`; most need not know."""
    known = cast(Any, optimizer)
    known = known.bind(layout) if needs_layout(optimizer) else known
    return known.for_groups() if grouped and hasattr(known, "for_groups") else known


def judges_average(optimizer: InnerOptimizer) -> bool:
    """Whether something else than the weights is validated."""
    return hasattr(optimizer, "judged")


def judged(optimizer: InnerOptimizer, weights: Tensor, state: Any) -> Tensor:
    """What is validated [D] of the `weights` [D] and the optimizer's `state`."""
    return cast(Any, optimizer).judged(weights, state) if judges_average(optimizer) else weights


def ties(optimizer: InnerOptimizer) -> Collection[str]:
    """The hyperparameters of which equal values at two steps are a point without a derivative."""
    return getattr(optimizer, "ties", ())


def safe_sqrt(x: Tensor) -> Tensor:
    """√x with derivative 0 at x = 0, where the true one is infinite and would turn tangents into NaN.

    A second moment is zero only where every gradient so far was zero; its tangent 2·g·dg is zero there too. Below 0,
    where rounding may take a variance, the root is 0.
    """
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1.0).sqrt(), 0.0)


@dataclass(frozen=True)
class Around:
    """What passes as `optimizer` and does something beside it: its name and settings are those of the one inside."""

    optimizer: InnerOptimizer

    @property
    def name(self) -> str:
        """That of the optimizer inside."""
        return self.optimizer.name

    @property
    def defaults(self) -> Mapping[str, float]:
        """Those of the optimizer inside."""
        return self.optimizer.defaults

    @property
    def switches(self) -> Mapping[str, object]:
        """Those of the optimizer inside."""
        return self.optimizer.switches
