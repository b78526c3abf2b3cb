"""The built-in inner optimizers as plain data: what the config, a schedule and a report know of them without torch.

Their formulas are in `fds_dist.tangents.optimizers`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fds_dist.common.domain import BELOW_ONE, NON_NEGATIVE
from fds_dist.common.faults import Fault
from fds_dist.common.kinds import show, wrong_kind
from fds_dist.common.registry import nearest

Domain = tuple[float, float]
"""The bounds of a hyperparameter, inclusive."""

USER_FORM = "package.module:Name"
"""How the config names an optimizer of a user's own."""


@dataclass(frozen=True)
class OptimizerFacts:
    """What is known of one built-in optimizer."""

    defaults: Mapping[str, float]
    """Its hyperparameters with `torch.optim`'s default values; those of its paper where `torch.optim` lacks it."""
    vectors: int
    """How many vectors over the weights its state has, with the default switches."""
    torch_class: str = ""
    """The class in `torch.optim` with the same formula; "": there is none."""
    package_class: str = ""
    """The class with the same formula in the package that its authors published; "": there is none."""
    switches: Mapping[str, bool | float] = field(default_factory=dict)
    """Its fixed settings with their defaults, called as in `torch.optim`."""
    domains: Mapping[str, Domain] = field(default_factory=dict)
    """Bounds of hyperparameters that `fds_dist.common.domain` does not know by their names."""
    averages: bool = False
    """Whether it keeps an average of the weights, which is then what is validated."""
    remark: str = ""
    """What a person should know who learns with it."""


_INTERPOLATION = (0.01, BELOW_ONE)
"""Of a schedule-free optimizer's β: at 0 the average would no longer follow from the weights."""

_ADAM = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0}

BUILT_IN: dict[str, OptimizerFacts] = {
    "sgd": OptimizerFacts(
        {"lr": 1e-3, "momentum": 0.0, "weight_decay": 0.0}, vectors=1, torch_class="SGD", switches={"nesterov": False}
    ),
    "adam": OptimizerFacts(_ADAM, vectors=2, torch_class="Adam"),
    "adamw": OptimizerFacts(_ADAM | {"weight_decay": 1e-2}, vectors=2, torch_class="AdamW"),
    "rmsprop": OptimizerFacts(
        {"lr": 1e-2, "alpha": 0.99, "eps": 1e-8, "momentum": 0.0, "weight_decay": 0.0},
        vectors=2,
        torch_class="RMSprop",
        switches={"centered": False},
        domains={"alpha": (0.0, BELOW_ONE)},
    ),
    "adagrad": OptimizerFacts(
        {"lr": 1e-2, "lr_decay": 0.0, "eps": 1e-10, "weight_decay": 0.0},
        vectors=1,
        torch_class="Adagrad",
        switches={"initial_accumulator_value": 0.0},
        domains={"lr_decay": NON_NEGATIVE},
    ),
    "nadam": OptimizerFacts(
        {**_ADAM, "lr": 2e-3, "momentum_decay": 4e-3},
        vectors=3,
        torch_class="NAdam",
        switches={"decoupled_weight_decay": False},
        domains={"momentum_decay": NON_NEGATIVE},
    ),
    "lion": OptimizerFacts(
        {"lr": 1e-4, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0},
        vectors=1,
        remark="lion moves weights by a sign, whose derivative is 0: hypergradients of beta1 and beta2 are 0, and "
        "those of lr and weight_decay lack what they change in later signs",
    ),
    "lamb": OptimizerFacts(_ADAM | {"eps": 1e-6, "weight_decay": 1e-2}, vectors=2),
    "muon": OptimizerFacts(
        {
            **{"lr": 1e-3, "momentum": 0.95, "weight_decay": 0.1},
            **{"adamw_lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
        },
        vectors=2,
        switches={"nesterov": True},
        domains={"adamw_lr": NON_NEGATIVE},
    ),
    "schedule_free_sgd": OptimizerFacts(
        {"lr": 1.0, "momentum": 0.9, "weight_decay": 0.0},
        vectors=1,
        package_class="SGDScheduleFree",
        switches={"r": 0.0, "weight_lr_power": 2.0},
        domains={"momentum": _INTERPOLATION},
        averages=True,
    ),
    "schedule_free_adamw": OptimizerFacts(
        _ADAM | {"lr": 2.5e-3},
        vectors=2,
        package_class="AdamWScheduleFree",
        switches={"r": 0.0, "weight_lr_power": 2.0},
        domains={"beta1": _INTERPOLATION},
        averages=True,
    ),
}
"""By name in the config."""

HYPERPARAMETERS = tuple(dict.fromkeys(name for facts in BUILT_IN.values() for name in facts.defaults))
"""The names of all built-in optimizers' hyperparameters."""


STARTS = {"lr": 0.05, "momentum": 0.5, "weight_decay": 1e-4}
"""Where a search begins with a hyperparameter that is 0 by default, and with SGD's learning rate: a run learns from it,
and there is room on both sides."""


def usual_start(optimizer: str, name: str) -> float | None:
    """The value with which a search for the hyperparameter `name` begins where none is given; None: it has no such.

    It is what `torch.optim` takes, or of `STARTS` where that is 0 or, for SGD's learning rate, says nothing.
    """
    usual = BUILT_IN[optimizer].defaults.get(name) if optimizer in BUILT_IN else None
    if usual is None:
        return None
    return STARTS.get(name, usual) if not usual or (optimizer, name) == ("sgd", "lr") else usual


def switch_faults(name: str, options: Mapping[str, object], key: str) -> Iterator[Fault]:
    """What is wrong with `options` as switches of the built-in optimizer `name`; `key`: where they stand."""
    switches = BUILT_IN[name].switches
    for option, value in options.items():
        if option not in switches:
            similar = nearest(option, switches)
            expected = ", ".join(switches) or f"nothing beside the name: {name} has no switches"
            yield Fault(f"{key}.{option}", "unknown switch", expected, f"{key}.{similar}" if similar else "")
        elif isinstance(switches[option], bool):
            if not isinstance(value, bool):
                yield Fault(f"{key}.{option}", wrong_kind(value), "true or false")
        elif isinstance(value, bool) or not isinstance(value, (int, float)):
            yield Fault(f"{key}.{option}", wrong_kind(value), "a number of at least 0")
        elif not 0 <= value < math.inf:
            yield Fault(f"{key}.{option}", f"{show(value)} is out of range", "a number of at least 0")


def switches_in(name: str, info: Mapping[str, Any]) -> dict[str, Any]:
    """The switches of the optimizer `name` that a schedule's `optimizer` info gives."""
    return {switch: info[switch] for switch in BUILT_IN[name].switches if switch in info} if name in BUILT_IN else {}


def torch_arguments(info: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, beside parameters and lr, of the `torch.optim` class for a schedule's `optimizer` info.

    Switches that have their defaults are left out. `torch.optim.SGD` takes nesterov only with a momentum above 0,
    whatever the momentum is set to later.
    """
    name = str(info["name"])
    usual = BUILT_IN[name].switches
    arguments = {switch: value for switch, value in switches_in(name, info).items() if value != usual[switch]}
    return {"momentum": 0.9, **arguments} if arguments.get("nesterov") else arguments
