"""Inner optimizers by the name in the config: the built-in ones, and a user's own by `package.module:Name`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from fds_dist.common.faults import Fault, UserError
from fds_dist.common.flat import FlatLayout
from fds_dist.common.optimizers import USER_FORM, switch_faults, switches_in
from fds_dist.common.registry import call_faults, call_user_function, load_object, nearest
from fds_dist.tangents.optimizers.adagrad import Adagrad
from fds_dist.tangents.optimizers.adam import Adam
from fds_dist.tangents.optimizers.lamb import LAMB
from fds_dist.tangents.optimizers.lion import Lion
from fds_dist.tangents.optimizers.muon import Muon
from fds_dist.tangents.optimizers.nadam import NAdam
from fds_dist.tangents.optimizers.protocol import InnerOptimizer, PerWeight, bound, same_for_all
from fds_dist.tangents.optimizers.rmsprop import RMSprop
from fds_dist.tangents.optimizers.schedule_free import ScheduleFree
from fds_dist.tangents.optimizers.sgd import SGD

INNER_OPTIMIZERS: dict[str, Callable[..., InnerOptimizer]] = {
    "sgd": SGD,
    "adam": Adam,
    "adamw": partial(Adam, decoupled=True),
    "rmsprop": RMSprop,
    "adagrad": Adagrad,
    "nadam": NAdam,
    "lion": Lion,
    "lamb": LAMB,
    "muon": Muon,
    "schedule_free_sgd": ScheduleFree,
    "schedule_free_adamw": partial(ScheduleFree, adaptive=True),
}
"""By name in the config; each takes the switches that `fds_dist.common.optimizers` lists for it."""


@dataclass(frozen=True)
class UserOptimizer:
    """An optimizer of a user's own under the name that finds it again: its path and options."""

    path: str
    options: Mapping[str, object]
    rule: Any
    """The user's object, with the members of `InnerOptimizer` beside name and switches."""

    @property
    def name(self) -> str:
        """The path."""
        return self.path

    @property
    def defaults(self) -> Mapping[str, float]:
        """See `InnerOptimizer`."""
        return self.rule.defaults

    @property
    def domains(self) -> Mapping[str, tuple[float, float]]:
        """See `InnerOptimizer`."""
        return getattr(self.rule, "domains", {})

    @property
    def switches(self) -> dict[str, object]:
        """Its options, and the names of its hyperparameters, by which a schedule tells them from the loss's own."""
        return {"options": dict(self.options), "hyperparameters": list(self.defaults)}

    def init(self, weights: Tensor) -> Any:
        """See `InnerOptimizer`."""
        return self.rule.init(weights)

    def update(
        self,
        weights: Tensor,
        state: Any,
        gradient: Tensor,
        h: Mapping[str, Tensor],
        per_weight: PerWeight = same_for_all,
    ) -> tuple[Tensor, Any]:
        """See `InnerOptimizer`."""
        return self.rule.update(weights, state, gradient, h, per_weight)


class BindableUserOptimizer(UserOptimizer):
    """One that treats each parameter as a whole."""

    def bind(self, layout: FlatLayout) -> UserOptimizer:
        """See `InnerOptimizer`."""
        return replace(self, rule=bound(self.rule, layout))


def make_inner_optimizer(name: str, options: Mapping[str, object], key: str = "inner.optimizer") -> InnerOptimizer:
    """The optimizer called `name` with `options`: switches of a built-in one, arguments of a user's own.

    Args:
        key: where they stand, for messages.

    Raises:
        UserError: the name or an option is unknown, or a user's optimizer cannot be made or lacks a member.
    """
    if name in INNER_OPTIMIZERS:
        if faults := list(switch_faults(name, options, key)):
            raise UserError(faults)
        return INNER_OPTIMIZERS[name](**options)
    if ":" not in name:
        known = f"one of {', '.join(INNER_OPTIMIZERS)}, or {USER_FORM}"
        raise UserError(Fault(key, f"{name!r} is unknown", known, nearest(name, INNER_OPTIMIZERS)))
    make = load_object(name, key)
    if faults := call_faults(make, options, key):
        raise UserError(faults)
    rule = call_user_function(make, options, key)
    missing = [] if isinstance(getattr(rule, "defaults", None), Mapping) else ["defaults"]
    missing += [member for member in ("init", "update") if not callable(getattr(rule, member, None))]
    if missing:
        problem = f"{name} gave a {type(rule).__name__} without {', '.join(missing)}"
        expected = "an object with defaults (a mapping), init(weights) and update(weights, state, gradient, h, ...)"
        raise UserError(Fault(key, problem, expected))
    return (BindableUserOptimizer if hasattr(rule, "bind") else UserOptimizer)(name, dict(options), rule)


def optimizer_of(info: Mapping[str, Any], key: str = "schedule: optimizer.name") -> InnerOptimizer:
    """The optimizer that a schedule's `optimizer` info names.

    Raises:
        UserError: the info names none, or one that cannot be made.
    """
    name = str(info.get("name", ""))
    if not name:
        raise UserError(Fault(key, "is missing", f"one of {', '.join(INNER_OPTIMIZERS)}"))
    options = info.get("options", {}) if ":" in name else switches_in(name, info)
    return make_inner_optimizer(name, options, key)
