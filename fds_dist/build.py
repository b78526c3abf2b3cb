"""From a config to objects: the only place where this happens.

Every check that needs more than the config itself (the task, the world size, the device) is here, and all faults are
reported together with those of the config.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from fds_dist.common.faults import Fault, UserError, user_code
from fds_dist.common.flat import trainable_parameters
from fds_dist.common.randomness import seeded
from fds_dist.common.registry import nearest
from fds_dist.config import Config, Draft, OuterConfig
from fds_dist.config.hyperparameters import HyperparameterConfig
from fds_dist.distributed.environment import LaunchEnvironment
from fds_dist.distributed.mesh import MeshShape, Ranks, choose_device, mesh_shape
from fds_dist.inner.dry_run import tried
from fds_dist.inner.estimators import ESTIMATORS, Estimator
from fds_dist.inner.estimators.greedy import greedy_estimator
from fds_dist.inner.problem import Problem, TangentOptions
from fds_dist.models import build_model
from fds_dist.outer.loop import OuterSettings
from fds_dist.outer.rules import AdamRule, GradientRule, OuterRule, SignRule
from fds_dist.schedule.groups import assigned, base_of, group_of, name_in
from fds_dist.schedule.space import Hyperparameter, HyperparameterSpace
from fds_dist.tangents.methods import default_method
from fds_dist.tangents.optimizers import INNER_OPTIMIZERS, InnerOptimizer
from fds_dist.tangents.step import Pruning
from fds_dist.tasks import build_task
from fds_dist.tasks.base import Task, loss_takes_hyperparameters, task_faults
from fds_dist.tasks.datasets import reinitialized
from fds_dist.tracking.wandb_session import effective_mode

Made = TypeVar("Made")
ModelBuilder = Callable[[int], nn.Module]
DTYPES = {"float32": torch.float32, "float64": torch.float64}
STAND_IN: dict[str, Any] = {"input_shape": (3, 32, 32), "classes": 10}
"""A sample that every network of this package takes."""


@dataclass(frozen=True)
class Build:
    """A run, ready to start."""

    config: Config
    problem: Problem
    settings: OuterSettings
    rule: OuterRule
    estimator: Estimator
    shape: MeshShape
    remarks: tuple[str, ...] = ()
    """What a person should know before the run."""

    def ranks(self, environment: LaunchEnvironment) -> Ranks:
        """The ranks of `environment` on this run's mesh, to be entered."""
        whole = self.config.mesh.batch_norm == "whole"
        return Ranks(environment, self.shape, self.problem.device, whole_batch_norm=whole)


def build(
    draft: Draft,
    environment: LaunchEnvironment,
    task: Task | None = None,
    model: nn.Module | ModelBuilder | None = None,
) -> Build:
    """The objects that `draft` describes, on the ranks of `environment`.

    Args:
        task: used in place of the config's `task`.
        model: used in place of the config's `model`: a module, which gets fresh weights by `reset_parameters` of its
            parts, or a function from a seed to a module.

    Raises:
        UserError: with every fault there is.
    """
    config = draft.config
    if config is None:
        raise UserError(draft.faults)
    faults = [fault for fault in draft.faults if task is None or not fault.key.startswith("task")]

    def attempt(key: str, make: Callable[[], Made]) -> Made | None:
        if draft.is_broken(key) and not (key == "task" and task is not None):
            return None
        try:
            return make()
        except UserError as error:
            faults.extend(error.faults)
            return None

    found_task = attempt("task", lambda: _task(config, task))
    builder = attempt("model", lambda: _model_builder(config, found_task, model))
    optimizer = INNER_OPTIMIZERS[config.inner.optimizer](config.inner.nesterov)
    space, space_faults = _space(config, optimizer, found_task)
    patterns = config.inner.groups
    if patterns is not None and builder is not None:
        attempt("inner.groups", lambda: assigned(patterns, trainable_parameters(builder(0))))
    groups = patterns if any(owner.base != owner.name for owner in space.learned) else None
    faults += [fault for fault in space_faults if not draft.is_broken(fault.key)]
    faults += [fault for fault in _option_faults(config) if not draft.is_broken(fault.key)]
    mesh = config.mesh
    shape, mesh_faults = mesh_shape(mesh.tangent, mesh.data, mesh.replica, environment.world_size)
    faults += [] if draft.is_broken("mesh") else mesh_faults
    device, device_faults = choose_device(config.device, environment)
    faults += device_faults
    attempt("tracking.wandb.mode", lambda: effective_mode(config.tracking.wandb.mode))
    epochs = _epochs(config)
    if found_task is not None and not draft.is_broken("inner.epochs"):
        faults += [
            fault
            for fault in _bucket_faults(config, space, epochs, found_task.steps_per_epoch)
            if not draft.is_broken(fault.key)
        ]
    if faults or found_task is None or builder is None or shape is None:
        raise UserError(faults)
    if (to_device := getattr(found_task, "to", None)) is not None:
        to_device(device)
    options = TangentOptions(
        method=default_method(device),
        clip_hvp=config.tangents.clip_hvp,
        pruning=Pruning(config.tangents.prune.mode, config.tangents.prune.ratio),
        chunk_size=None if config.tangents.chunk_size == "auto" else config.tangents.chunk_size,
    )
    problem = Problem(
        task=found_task,
        build_model=builder,
        optimizer=optimizer,
        space=space,
        tangents=options,
        device=device,
        dtype=DTYPES[config.dtype],
        clip_gradient=config.inner.clip_gradient,
        val_batch_norm=config.outer.val_batch_norm,
        seed=config.seed,
        groups=groups or {},
    )
    problem, remark = tried(problem, config.tangents.method)
    unused = "inner.groups has no effect: no hyperparameter has per_group" if patterns and not groups else ""
    return Build(
        config=config,
        problem=problem,
        settings=OuterSettings(epochs, config.outer.nonfinite_patience, config.outer.retreat),
        rule=outer_rule(config.outer),
        estimator=_estimator(config),
        shape=shape,
        remarks=tuple(text for text in (*draft.remarks, remark, unused) if text),
    )


def _task(config: Config, given: Task | None) -> Task:
    if given is None:
        return build_task(config.task.name, config.task.options, seed=config.seed)
    if faults := task_faults(given):
        raise UserError(faults)
    return given


def _model_builder(config: Config, task: Task | None, given: nn.Module | ModelBuilder | None) -> ModelBuilder | None:
    """`model_builder`, or None where the task is at fault itself; what does not depend on it can still be found."""
    if task is not None:
        return model_builder(config, task, given)
    if given is None and config.model is not None and ":" not in config.model.name:
        build_model(config.model.name, config.model.options, **STAND_IN, seed=0)
    return None


def model_builder(config: Config, task: Task, given: nn.Module | ModelBuilder | None = None) -> ModelBuilder:
    """seed → network, tried once so that faults show before any training.

    Raises:
        UserError: there is no model, or it cannot be built.
    """
    if isinstance(given, nn.Module):
        module = given
        builder: ModelBuilder = lambda seed: reinitialized(module, seed)  # noqa: E731
    elif given is not None:
        builder = _seeded(given)
    elif config.model is not None:
        name, options = config.model.name, config.model.options
        shape, classes = getattr(task, "input_shape", None), getattr(task, "classes", None)
        builder = lambda seed: build_model(name, options, input_shape=shape, classes=classes, seed=seed)  # noqa: E731
    elif (own := getattr(task, "build_model", None)) is not None:
        builder = _seeded(own)
    else:
        raise UserError(Fault("model", "is missing, and this task builds none", "a model, such as {name: lenet}"))
    with user_code("model", "building the network"):
        module = builder(0)
    if not isinstance(module, nn.Module):
        raise UserError(Fault("model", f"build_model returned a {type(module).__name__}", "a torch.nn.Module"))
    return builder


def _seeded(function: ModelBuilder) -> ModelBuilder:
    """`function` under the seed as torch's global one too, so that a function that ignores it agrees on all ranks."""

    def build_seeded(seed: int) -> nn.Module:
        with seeded(seed):
            return function(seed)

    return build_seeded


def _space(config: Config, optimizer: InnerOptimizer, task: Task | None) -> tuple[HyperparameterSpace, list[Fault]]:
    """The hyperparameter space, and what is wrong with it."""
    learned: list[Hyperparameter] = []
    fixed = {name: value for name, value in optimizer.defaults.items() if name not in config.hyperparameters}
    faults: list[Fault] = []
    for name, entry in config.hyperparameters.items():
        key = f"hyperparameters.{name}"
        if name not in optimizer.defaults and (task is None or not loss_takes_hyperparameters(task)):
            near = nearest(name, optimizer.defaults)
            expected = (
                f"{', '.join(optimizer.defaults)} (of {optimizer.name}), or a task whose loss takes a third argument"
            )
            faults.append(Fault(key, "unknown hyperparameter", expected, f"hyperparameters.{near}" if near else ""))
        elif isinstance(entry, HyperparameterConfig) and entry.per_group and name not in optimizer.defaults:
            expected = f"false; the optimizer's own can be: {', '.join(optimizer.defaults)}"
            faults.append(Fault(f"{key}.per_group", f"{name} belongs to the loss, which has no groups", expected))
        elif isinstance(entry, HyperparameterConfig):
            for copy_name, own in _copies(name, entry, config.inner.groups or {}).items():
                bounds = own.bounds(name)
                learned.append(Hyperparameter(copy_name, own.init, own.step, own.buckets, bounds, own.scale))
        else:
            fixed[name] = entry
    if not learned and not faults:
        expected = "at least one like lr: {init: 0.1, step: 0.1, buckets: 5}"
        faults.append(Fault("hyperparameters", "nothing is learned, all are fixed numbers", expected))
    return HyperparameterSpace(tuple(learned), fixed), list(dict.fromkeys(faults))


def _copies(name: str, entry: HyperparameterConfig, groups: Mapping[str, str]) -> dict[str, HyperparameterConfig]:
    """The hyperparameter itself, or its copies for the parameter groups, by name."""
    if not (entry.per_group and groups):
        return {name: entry}
    return {name_in(name, group): entry.for_group(group) for group in groups}


def _key(config: Config, name: str, setting: str) -> str:
    """The config's key of the hyperparameter `name` (`lr`, `lr.norm_and_bias`): where its `setting` stands."""
    key, entry = f"hyperparameters.{base_of(name)}", config.hyperparameters[base_of(name)]
    overrides = entry.per_group if isinstance(entry, HyperparameterConfig) else {}
    own = overrides.get(group_of(name)) if isinstance(overrides, dict) else None
    return f"{key}.per_group.{group_of(name)}" if own is not None and setting in own.model_fields_set else key


def _option_faults(config: Config) -> list[Fault]:
    """Options that exclude each other, and those that are part of the contract but not available yet."""
    faults = []
    if config.estimator == "reverse":
        inexact = {"tangents.clip_hvp": config.tangents.clip_hvp, "tangents.prune.ratio": config.tangents.prune.ratio}
        faults += [
            Fault(key, f"{value:g} has no meaning with estimator reverse, which has no tangents", "leave it out")
            for key, value in inexact.items()
            if value
        ]
    return faults


def _estimator(config: Config) -> Estimator:
    return greedy_estimator(config.greedy.discount) if config.estimator == "greedy" else ESTIMATORS[config.estimator]


RPROP_GROWTH = 1.2


def outer_rule(config: OuterConfig) -> OuterRule:
    """The outer optimizer that the config names."""
    by_sign = config.optimizer in ("sign", "rprop")
    decay = config.step_decay or (0.5 if by_sign else 0.8)
    if by_sign:
        return SignRule(decay, config.tolerance, RPROP_GROWTH if config.optimizer == "rprop" else 1.0)
    if config.optimizer == "sgd":
        return GradientRule(decay, config.tolerance, config.momentum)
    return AdamRule(decay, config.tolerance, config.beta1, config.beta2)


def _epochs(config: Config) -> tuple[float, ...]:
    epochs = config.inner.epochs
    return tuple(epochs) if isinstance(epochs, list) else (epochs,) * config.outer.steps


def _bucket_faults(
    config: Config, space: HyperparameterSpace, epochs: tuple[float, ...], steps_per_epoch: int
) -> list[Fault]:
    """Hyperparameters with more buckets than the shortest horizon has steps."""
    horizon = max(1, round(min(epochs) * steps_per_epoch))
    problem = f"more buckets than inner steps: the shortest horizon has {horizon}"
    faults = [
        Fault(f"{_key(config, owner.name, 'buckets')}.buckets", f"{owner.buckets} is {problem}", f"at most {horizon}")
        for owner in space.learned
        if owner.buckets > horizon
    ]
    return list(dict.fromkeys(faults))
