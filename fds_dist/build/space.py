"""The hyperparameter space that a config describes, with everything that is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from fds_dist.build.starts import start_of
from fds_dist.common.domain import UNBOUNDED, interval
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.registry import nearest
from fds_dist.common.values import Row, Value
from fds_dist.common.words import counted
from fds_dist.config import Config
from fds_dist.config.hyperparameters import HyperparameterConfig
from fds_dist.schedule.groups import base_of, group_of, name_in
from fds_dist.schedule.space import Hyperparameter, HyperparameterSpace
from fds_dist.tangents.optimizers import InnerOptimizer
from fds_dist.tasks.base import Task, takes_hyperparameters

NOTHING: Mapping[str, Row] = MappingProxyType({})


def hyperparameter_space(
    config: Config, optimizer: InnerOptimizer, task: Task | None, began: Mapping[str, Row] = NOTHING
) -> tuple[HyperparameterSpace, list[Fault]]:
    """The hyperparameter space, and what is wrong with it. `began`: see `start_of`."""
    learned: list[Hyperparameter] = []
    fixed = {name: value for name, value in optimizer.defaults.items() if name not in config.hyperparameters}
    faults: list[Fault] = []
    domains = getattr(optimizer, "domains", {})
    for name, entry in config.hyperparameters.items():
        is_loss_own = name not in optimizer.defaults
        if is_loss_own and (task is None or not takes_hyperparameters(task)):
            faults.append(_unknown_hyperparameter(name, optimizer))
        elif not isinstance(entry, HyperparameterConfig):
            fixed[name] = entry
            faults += _domain_faults(f"hyperparameters.{name}", entry, domains.get(name, UNBOUNDED))
        elif entry.per_group and is_loss_own:
            key = f"hyperparameters.{name}.per_group"
            expected = f"false; the optimizer's own can be: {', '.join(optimizer.defaults)}"
            faults.append(Fault(key, f"{name} belongs to the loss, which has no groups", expected))
        elif entry.size > 1 and not is_loss_own:
            problem = f"{entry.size} is not possible: {name} belongs to the optimizer, which takes one number"
            faults.append(Fault(f"hyperparameters.{name}.size", problem, "1; or per_group, a number for each group"))
        else:
            for copy_name, copy in _copies(name, entry, config.inner.groups or {}).items():
                key, bounds = f"{_key(config, copy_name, 'init')}.init", _bounds(name, copy, domains)
                try:
                    start = start_of(copy_name, copy, key, bounds, began)
                except UserError as error:
                    faults += error.faults
                    continue
                learned.append(_learned(copy_name, copy, start, bounds))
    if not learned and not faults:
        expected = "at least one like lr: {init: 0.1, step: 0.1, buckets: 5}"
        faults.append(Fault("hyperparameters", "nothing is learned, all are fixed numbers", expected))
    space = HyperparameterSpace(tuple(learned), fixed)
    return space, [*faults, *direction_faults(config, space)]


def _learned(name: str, entry: HyperparameterConfig, start: Value, bounds: tuple[float, float]) -> Hyperparameter:
    return Hyperparameter(name, start, entry.step, entry.buckets, bounds, entry.scale, entry.size, entry.shape)


def _bounds(name: str, entry: HyperparameterConfig, domains: Mapping[str, tuple[float, float]]) -> tuple[float, float]:
    """(min, max): those of the config, or where it has none the closer ones of what is common for the name and of the
    optimizer's own."""
    (low, high), (least, most) = entry.bounds(name), domains.get(base_of(name), UNBOUNDED)
    low = low if "min" in entry.model_fields_set else max(low, least)
    return low, high if "max" in entry.model_fields_set else min(high, most)


def _domain_faults(key: str, value: float, bounds: tuple[float, float]) -> list[Fault]:
    return [] if bounds[0] <= value <= bounds[1] else [Fault(key, f"{value:g} is out of range", interval(*bounds))]


def _unknown_hyperparameter(name: str, optimizer: InnerOptimizer) -> Fault:
    nearest_name = nearest(name, optimizer.defaults)
    suggestion = f"hyperparameters.{nearest_name}" if nearest_name else ""
    own = "or a task whose loss takes a third argument or that has an augment"
    expected = f"{', '.join(optimizer.defaults)} (of {optimizer.name}), {own}"
    return Fault(f"hyperparameters.{name}", "unknown hyperparameter", expected, suggestion)


def _copies(name: str, entry: HyperparameterConfig, groups: Mapping[str, str]) -> dict[str, HyperparameterConfig]:
    """The hyperparameter itself, or its copies for the parameter groups, by their names in all files."""
    if not (entry.per_group and groups):
        return {name: entry}
    return {name_in(name, group): entry.for_group(group) for group in groups}


def _key(config: Config, name: str, setting: str) -> str:
    """The config's key of the hyperparameter `name` (`lr`, `lr.norm_and_bias`): where its `setting` stands."""
    key, entry = f"hyperparameters.{base_of(name)}", config.hyperparameters[base_of(name)]
    overrides = entry.per_group if isinstance(entry, HyperparameterConfig) else {}
    override = overrides.get(group_of(name)) if isinstance(overrides, dict) else None
    is_overridden = override is not None and setting in override.model_fields_set
    return f"{key}.per_group.{group_of(name)}" if is_overridden else key


def direction_faults(config: Config, space: HyperparameterSpace) -> list[Fault]:
    """More random directions than learned numbers."""
    count = config.random_directions.count
    if config.estimator != "random_directions" or count <= space.size or not space.size:
        return []
    problem = f"{count} directions for {counted(space.size, 'learned number')}"
    return [Fault("random_directions.count", problem, f"at most {space.size}; estimator=forward is exact and cheaper")]


def bucket_faults(config: Config, space: HyperparameterSpace, horizon: int) -> list[Fault]:
    """Hyperparameters with more buckets than the shortest horizon has steps."""
    problem = f"more buckets than inner steps: the shortest horizon has {horizon}"
    faults = [
        Fault(f"{_key(config, owner.name, 'buckets')}.buckets", f"{owner.buckets} is {problem}", f"at most {horizon}")
        for owner in space.learned
        if owner.buckets > horizon
    ]
    return list(dict.fromkeys(faults))
