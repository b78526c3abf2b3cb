"""Inner optimizers: pure `(init, update)` pairs whose hyperparameters are arguments.

An update is a function of tensors alone, so that `torch.func.jvp` of it is its tangent: no optimizer needs a
hand-derived rule (design of FDS, arXiv 2007.07869, equation 3, does it by hand for SGD with momentum).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

from fds_dist.inner.adam import Adam
from fds_dist.inner.per_weight import PerWeight, same_for_all
from fds_dist.inner.sgd import SGD


class InnerOptimizer(Protocol):
    """What the inner run needs of an optimizer; its state is a NamedTuple of tensors."""

    @property
    def name(self) -> str:
        """The name in the config."""
        ...

    @property
    def defaults(self) -> Mapping[str, float]:
        """The names of its hyperparameters with `torch.optim`'s default values."""
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

        A value is a 0-d tensor, or [G], one per parameter group, of which `per_weight` makes one per weight [D]. What
        hyperparameters alone go into is computed first, and cheaply, on these.
        """
        ...


INNER_OPTIMIZERS: dict[str, Callable[[bool], InnerOptimizer]] = {
    "sgd": lambda nesterov: SGD(nesterov=nesterov),
    "adam": lambda nesterov: Adam(),
    "adamw": lambda nesterov: Adam(decoupled=True),
}
"""By name in the config; each takes the switch `inner.nesterov`, which is for SGD alone."""

__all__ = ["INNER_OPTIMIZERS", "SGD", "Adam", "InnerOptimizer", "PerWeight"]
