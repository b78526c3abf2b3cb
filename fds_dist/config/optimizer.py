"""`inner.optimizer`: a name, or a mapping with the name and switches or arguments."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import WithJsonSchema, model_validator

from fds_dist.common.kinds import Text, fault, read_by, show, wrong_kind
from fds_dist.common.optimizers import BUILT_IN, USER_FORM, switch_faults
from fds_dist.common.registry import nearest
from fds_dist.config.sections import Contradiction, FunctionConfig, refuse

KNOWN = f"{', '.join(BUILT_IN)} or {USER_FORM}"


def _name(value: Any) -> str:
    if not isinstance(value, str):
        raise fault(wrong_kind(value), KNOWN)
    if value not in BUILT_IN and ":" not in value:
        raise fault(f"{show(value)} is not valid", KNOWN, suggestion=nearest(value, BUILT_IN))
    return value


NAMES = WithJsonSchema({"anyOf": [{"enum": list(BUILT_IN)}, {"type": "string", "pattern": ":"}]})


class OptimizerConfig(FunctionConfig):
    """An inner optimizer by its name; the further keys are its switches, or the arguments of a user's own."""

    name: Annotated[Text, read_by(_name), NAMES]
    """A built-in name, or `package.module:Name`."""

    @model_validator(mode="after")
    def _switches_are_known(self) -> OptimizerConfig:
        faults = switch_faults(self.name, self.options, "") if self.name in BUILT_IN else ()
        refuse(Contradiction((each.key.removeprefix("."),), each.problem, each.expected) for each in faults)
        return self


def _optimizer(value: Any) -> str | OptimizerConfig:
    if not isinstance(value, (dict, OptimizerConfig)):
        return _name(value)
    chosen = OptimizerConfig.model_validate(value)
    return chosen if chosen.options else chosen.name


Optimizer = Annotated[Annotated[str, NAMES] | OptimizerConfig, read_by(_optimizer)]


def takes_nesterov(optimizer: str | OptimizerConfig) -> bool:
    """Whether `inner.nesterov: true` agrees with `inner.optimizer`."""
    name, options = (optimizer, {}) if isinstance(optimizer, str) else (optimizer.name, optimizer.options)
    return name in BUILT_IN and "nesterov" in BUILT_IN[name].switches and options.get("nesterov") is not False
