"""From a config to objects: the only place where this happens.

Every check that needs more than the config itself (the task, the world size, the device) is here, and all faults are
reported together with those of the config.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from fds_dist.common.faults import Fault, UserError, user_code
from fds_dist.common.flat import trainable_parameters
from fds_dist.common.precision import DTYPES
from fds_dist.common.registry import nearest
from fds_dist.config import Config, Draft, Faults, OuterConfig
from fds_dist.config.hyperparameters import HyperparameterConfig
from fds_dist.distributed.environment import LaunchEnvironment
from fds_dist.distributed.mesh import MeshShape, Ranks, choose_device, mesh_shape
from fds_dist.inner.dry_run import dry_run
from fds_dist.inner.estimators import ESTIMATORS, Estimator
from fds_dist.inner.estimators.greedy import greedy_estimator
from fds_dist.inner.problem import Problem, TangentOptions
from fds_dist.models import build_model, network_of
from fds_dist.models.handed_in import KEEP, REDRAW, HandedIn, checked_start
from fds_dist.outer.loop import OuterSettings
from fds_dist.outer.rules import AdamRule, GradientRule, OuterRule, SignRule
from fds_dist.schedule.groups import assigned, base_of, group_of, name_in
from fds_dist.schedule.space import Hyperparameter, HyperparameterSpace
from fds_dist.tangents.methods import default_method
from fds_dist.tangents.optimizers import INNER_OPTIMIZERS, InnerOptimizer
from fds_dist.tangents.step import Pruning
from fds_dist.tasks import build_task
from fds_dist.tasks.base import Task, loss_takes_hyperparameters, task_faults
from fds_dist.tracking.wandb_session import effective_mode

ModelBuilder = Callable[[int], nn.Module]
STAND_IN: dict[str, Any] = {"input_shape": (3, 32, 32), "classes": 10}
"""An image, in place of the samples of a task that cannot be built."""


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
        model: used in place of the config's `model`: a module, whose copies start every outer step with its weights
            (with new ones where the config has `model.init: redraw`), or a function from a seed to a module.

    Raises:
        UserError: with every fault there is.
    """
    config = draft.config
    if config is None:
        raise UserError(draft.faults)
    faults = Faults(draft, "task" if task is not None else "")
    built_task = faults.attempt("task", lambda: _task(config, task))
    builder = faults.attempt("model", lambda: _model_builder(config, built_task, model))
    optimizer = INNER_OPTIMIZERS[config.inner.optimizer](config.inner.nesterov)
    space, space_faults = _space(config, optimizer, built_task)
    if (patterns := config.inner.groups) and builder is not None:
        faults.attempt("inner.groups", lambda: assigned(patterns, trainable_parameters(builder(0))))
    notes = faults.attempt("model", builder.remarks) if isinstance(builder, HandedIn) else None
    faults.add(space_faults)
    shape = faults.attempt("mesh", lambda: _mesh_shape(config, environment))
    device, device_faults = choose_device(config.device, environment)
    faults.add(device_faults)
    faults.attempt("tracking.wandb.mode", lambda: effective_mode(config.tracking.wandb.mode))
    if built_task is not None and faults.is_sound("inner.epochs"):
        faults.add(_bucket_faults(config, space, built_task.steps_per_epoch))
    if faults.all or built_task is None or builder is None or shape is None:
        raise UserError(faults.all)
    problem = _problem(config, built_task, builder, optimizer, space, device)
    shortest = problem.horizon(min(_epochs(config)))
    plain_steps = shortest if config.consistency.witness == "on" else 0
    problem, remarks = dry_run(problem, config.tangents.method, config.estimator, plain_steps)
    if not plain_steps:
        remarks += ("consistency.witness is off: this run was not checked against plain PyTorch",)
    return Build(
        config=config,
        problem=problem,
        settings=OuterSettings(_epochs(config), config.outer.nonfinite_patience, config.outer.retreat),
        rule=outer_rule(config.outer),
        estimator=_estimator(config),
        shape=shape,
        remarks=tuple(filter(None, (*draft.remarks, *(notes or ()), *remarks, _unused_groups(config, problem)))),
    )


def _unused_groups(config: Config, problem: Problem) -> str:
    is_unused = config.inner.groups and not problem.groups
    return "inner.groups has no effect: no hyperparameter has per_group" if is_unused else ""


def _problem(
    config: Config,
    task: Task,
    builder: ModelBuilder,
    optimizer: InnerOptimizer,
    space: HyperparameterSpace,
    device: torch.device,
) -> Problem:
    """The inner problem, its data on the device."""
    if (to_device := getattr(task, "to", None)) is not None:
        to_device(device)
    tangents = TangentOptions(
        method=default_method(device),
        clip_hvp=config.tangents.clip_hvp,
        pruning=Pruning(config.tangents.prune.mode, config.tangents.prune.ratio),
        chunk_size=None if config.tangents.chunk_size == "auto" else config.tangents.chunk_size,
    )
    uses_groups = any(hyperparameter.base != hyperparameter.name for hyperparameter in space.learned)
    return Problem(
        task=task,
        build_model=builder,
        optimizer=optimizer,
        space=space,
        tangents=tangents,
        device=device,
        dtype=DTYPES[config.dtype],
        clip_gradient=config.inner.clip_gradient,
        val_batch_norm=config.outer.val_batch_norm,
        seed=config.seed,
        groups=(config.inner.groups or {}) if uses_groups else {},
    )


def _task(config: Config, task: Task | None) -> Task:
    """The task from Python, checked, or the config's."""
    if task is None:
        return build_task(config.task.name, config.task.options, seed=config.seed)
    if faults := task_faults(task):
        raise UserError(faults)
    return task


def _mesh_shape(config: Config, environment: LaunchEnvironment) -> MeshShape | None:
    mesh = config.mesh
    shape, faults = mesh_shape(mesh.tangent, mesh.data, mesh.replica, environment.world_size)
    if faults:
        raise UserError(faults)
    return shape


def _model_builder(config: Config, task: Task | None, model: nn.Module | ModelBuilder | None) -> ModelBuilder | None:
    """`model_builder`; None where there is no task, whose faults do not hide those of the network's options."""
    if task is not None:
        return model_builder(config, task, model)
    name = None if model is not None or config.model is None else config.model.name
    if config.model is not None and name is not None and ":" not in name:
        try:
            build_model(name, config.model.options, **STAND_IN, seed=0)
        except UserError as error:
            raise UserError(fault for fault in error.faults if fault.key != "model.input_shape") from error
    return None


def model_builder(config: Config, task: Task, model: nn.Module | ModelBuilder | None = None) -> ModelBuilder:
    """seed → network, tried once so that faults show before any training.

    Args:
        model: used in place of the config's `model` and the task's own.

    Raises:
        UserError: there is no model, or it cannot be built.
    """
    name, options = (None, {}) if config.model is None else (config.model.name, config.model.options)
    inputs = partial(_first_inputs, task)
    own = model if model is not None else getattr(task, "build_model", None)
    builder: ModelBuilder
    if model is None and name is not None:
        shape, classes = getattr(task, "input_shape", None), getattr(task, "classes", None)
        builder = network_of(name, options, shape, classes, inputs)
    elif own is not None:
        init = options.get("init", KEEP)
        init = checked_start(init) if name is None else REDRAW if init == REDRAW else KEEP
        make = (lambda seed: own) if isinstance(own, nn.Module) else own
        builder = HandedIn(make, init, inputs)
    else:
        raise UserError(Fault("model", "is missing, and this task builds none", "a model, such as {name: lenet}"))
    builder(0)
    return builder


def _first_inputs(task: Task) -> Any:
    with user_code("task.train_batches", "train_batches(outer_step=0, epoch=0)"):
        return next(iter(task.train_batches(0, 0)))[0]


def _space(config: Config, optimizer: InnerOptimizer, task: Task | None) -> tuple[HyperparameterSpace, list[Fault]]:
    """The hyperparameter space, and what is wrong with it."""
    learned: list[Hyperparameter] = []
    fixed = {name: value for name, value in optimizer.defaults.items() if name not in config.hyperparameters}
    faults: list[Fault] = []
    for name, entry in config.hyperparameters.items():
        is_loss_own = name not in optimizer.defaults
        if is_loss_own and (task is None or not loss_takes_hyperparameters(task)):
            faults.append(_unknown_hyperparameter(name, optimizer))
        elif not isinstance(entry, HyperparameterConfig):
            fixed[name] = entry
        elif entry.per_group and is_loss_own:
            key = f"hyperparameters.{name}.per_group"
            expected = f"false; the optimizer's own can be: {', '.join(optimizer.defaults)}"
            faults.append(Fault(key, f"{name} belongs to the loss, which has no groups", expected))
        else:
            learned += [
                Hyperparameter(copy_name, copy.init, copy.step, copy.buckets, copy.bounds(name), copy.scale)
                for copy_name, copy in _copies(name, entry, config.inner.groups or {}).items()
            ]
    if not learned and not faults:
        expected = "at least one like lr: {init: 0.1, step: 0.1, buckets: 5}"
        faults.append(Fault("hyperparameters", "nothing is learned, all are fixed numbers", expected))
    return HyperparameterSpace(tuple(learned), fixed), faults


def _unknown_hyperparameter(name: str, optimizer: InnerOptimizer) -> Fault:
    nearest_name = nearest(name, optimizer.defaults)
    suggestion = f"hyperparameters.{nearest_name}" if nearest_name else ""
    expected = f"{', '.join(optimizer.defaults)} (of {optimizer.name}), or a task whose loss takes a third argument"
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


def _bucket_faults(config: Config, space: HyperparameterSpace, steps_per_epoch: int) -> list[Fault]:
    """Hyperparameters with more buckets than the shortest horizon has steps."""
    horizon = max(1, round(min(_epochs(config)) * steps_per_epoch))
    problem = f"more buckets than inner steps: the shortest horizon has {horizon}"
    faults = [
        Fault(f"{_key(config, owner.name, 'buckets')}.buckets", f"{owner.buckets} is {problem}", f"at most {horizon}")
        for owner in space.learned
        if owner.buckets > horizon
    ]
    return list(dict.fromkeys(faults))
