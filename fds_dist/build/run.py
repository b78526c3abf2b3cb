"""A run from its config.

Every check that needs more than the config itself (the task, the world size, the device) is here, and all faults are
reported together with those of the config.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from fds_dist.build.estimators import ReverseTrial, estimator_of, tried
from fds_dist.build.model import ModelBuilder, builder_or_none
from fds_dist.build.optimizer import check_fit, inner_optimizer, remark_on
from fds_dist.build.size import horizon_faults, memory_faults
from fds_dist.build.space import NOTHING, hyperparameter_space
from fds_dist.common.faults import UserError
from fds_dist.common.flat import trainable_parameters
from fds_dist.common.precision import AUTOCAST, DTYPES
from fds_dist.common.values import Row
from fds_dist.config import Config, Draft, Faults, OuterConfig
from fds_dist.distributed.arithmetic import Arithmetic
from fds_dist.distributed.devices import reproducible_threads, set_up
from fds_dist.distributed.environment import LaunchEnvironment
from fds_dist.distributed.mesh import MeshShape, Ranks, mesh_shape
from fds_dist.inner.choice import Choice
from fds_dist.inner.estimators import Estimator
from fds_dist.inner.problem import Problem
from fds_dist.inner.tangent_options import TangentOptions
from fds_dist.models.fine_tuning import FineTuned
from fds_dist.models.handed_in import HandedIn
from fds_dist.outer.progress import OuterSettings
from fds_dist.outer.rules import AdamRule, GradientRule, OuterRule, SignRule
from fds_dist.schedule.groups import assigned
from fds_dist.schedule.space import HyperparameterSpace
from fds_dist.tangents.methods import default_method
from fds_dist.tangents.optimizers import SGD, InnerOptimizer
from fds_dist.tangents.step import Pruning
from fds_dist.tasks import build_task
from fds_dist.tasks.base import Task, task_faults
from fds_dist.tracking.installed import check_trackers


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
    reverse: ReverseTrial | None = None
    """What was learned of reverse mode, with `estimator: auto` until it is settled."""
    choice: Choice | None = None
    """What `estimator: auto` has come to; None where the config names the estimator."""

    def ranks(self, environment: LaunchEnvironment) -> Ranks:
        """The ranks of `environment` on this run's mesh, to be entered."""
        whole = self.config.mesh.batch_norm == "whole"
        return Ranks(environment, self.shape, self.problem.device, whole_batch_norm=whole)


def build(
    draft: Draft,
    environment: LaunchEnvironment,
    task: Task | None = None,
    model: nn.Module | ModelBuilder | None = None,
    began: Mapping[str, Row] = NOTHING,
) -> Build:
    """The objects that `draft` describes, on the ranks of `environment`.

    Args:
        task: used in place of the config's `task`.
        model: used in place of the config's `model`: a module, whose copies start every outer step with its weights
            (with new ones where the config has `model.init: redraw`), or a function from a seed to a module.
        began: name → the values of the first outer step of a run that goes on; see `fds_dist.build.starts.start_of`.

    Raises:
        UserError: with every fault there is.
    """
    config = draft.config
    if config is None:
        raise UserError(draft.faults)
    faults = Faults(draft, "task" if task is not None else "")
    arithmetic = Arithmetic(config.consistency.mode == "verify", config.precision)
    chosen = faults.attempt("device", lambda: set_up(config.device, arithmetic, environment))
    built_task = faults.attempt("task", lambda: _task(config, task))
    builder = faults.attempt("model", lambda: builder_or_none(config, built_task, model))
    optimizer = faults.attempt("inner.optimizer", lambda: inner_optimizer(config))
    space, space_faults = hyperparameter_space(config, optimizer or SGD(), built_task, began)
    if (patterns := config.inner.groups) and builder is not None:
        faults.attempt("inner.groups", lambda: assigned(patterns, trainable_parameters(builder(0))))
    notes = faults.attempt("model", builder.remarks) if isinstance(builder, (HandedIn, FineTuned)) else None
    faults.add(space_faults if optimizer is not None else ())
    shape = faults.attempt("mesh", lambda: _mesh_shape(config, environment))
    if optimizer is not None and builder is not None and shape is not None:
        faults.attempt("inner.optimizer", lambda: check_fit(optimizer, builder, space, shape))
    faults.attempt("tracking", lambda: check_trackers(config.tracking.wandb.mode, config.tracking.tensorboard))
    if built_task is not None and faults.is_sound("inner.epochs") and faults.is_sound("inner.steps"):
        faults.add(horizon_faults(config, space, horizons(config, built_task)))
    if builder is not None and shape is not None and chosen is not None:
        faults.add(memory_faults(config, space.size, builder, shape, chosen.device))
    if faults.all or built_task is None or builder is None or optimizer is None or shape is None or chosen is None:
        raise UserError(faults.all)
    untried = _problem(config, built_task, builder, optimizer, space, chosen.device)
    settings = _outer_settings(config, built_task)
    with reproducible_threads(chosen.device):  # as the run itself
        problem, remarks, reverse = tried(untried, config, settings, shape, environment)
    remarks += (remark_on(optimizer), _unused_groups(config, problem))
    told = tuple(filter(None, (*chosen.remarks, *draft.remarks, *(notes or ()), *remarks)))
    return Build(config, problem, settings, outer_rule(config.outer), estimator_of(config), shape, told, reverse)


def _outer_settings(config: Config, task: Task) -> OuterSettings:
    outer = config.outer
    return OuterSettings(horizons(config, task), outer.nonfinite_patience, outer.retreat, outer.timeout, outer.target)


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
        cuda_graph=config.tangents.cuda_graph == "auto",
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
        clip_norm=config.inner.clip_norm,
        ema=config.inner.ema,
        low=AUTOCAST[config.inner.precision],
        accumulate=config.inner.accumulate,
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


def horizons(config: Config, task: Task) -> tuple[int, ...]:
    """The inner steps of each outer step, at least 1."""
    per_unit = 1 if config.inner.steps else task.steps_per_epoch
    lengths = config.inner.steps or config.inner.epochs or 1.0
    lengths = lengths if isinstance(lengths, list) else [lengths] * config.outer.steps
    return tuple(max(1, round(length * per_unit)) for length in lengths)
