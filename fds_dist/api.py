"""The commands as functions: what `fds_dist.optimize(...)` and `fds-dist optimize ...` both call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from fds_dist.build import Build, ModelBuilder, build
from fds_dist.config import Config, Draft, HyperparameterConfig, PruneConfig, read_draft
from fds_dist.cost import CostReport, cost_report
from fds_dist.distributed.agreement import agreed
from fds_dist.distributed.environment import read_environment
from fds_dist.distributed.mesh import reproducible_threads
from fds_dist.faults import Fault, UserError
from fds_dist.registry import nearest
from fds_dist.run import RunResult, Search
from fds_dist.run_folder import RunFolder
from fds_dist.tasks.base import Task
from fds_dist.tracking.wandb_session import failure_told_to_sweep
from fds_dist.verification import Verification, compare_derivatives

VERIFIED_STEPS = 50

Source = str | Path | Mapping[str, Any] | Config


def optimize(
    config: Source | None = None,
    overrides: Sequence[str] = (),
    *,
    task: Task | None = None,
    model: nn.Module | ModelBuilder | None = None,
    resume: str | Path | None = None,
    progress: bool = True,
) -> RunResult:
    """Learns the schedules that `config` asks for. Under a launcher, call it alike on every rank.

    Args:
        config: a YAML file, or the config as a mapping; None with `resume`.
        overrides: `key.sub=value` strings.
        task: an object used in place of the config's task; see `fds_dist.task_from_datasets`.
        model: a module or a function from a seed to one, used in place of the config's model.
        resume: the folder of a run to go on with.
        progress: whether rank 0 prints how it goes.

    Raises:
        UserError: the input is wrong; nothing was trained.
        HypergradientsNotFinite, RunsDiverged: the run cannot go on; what was computed is in its folder.
    """
    environment = read_environment()
    folder = None if resume is None else Path(resume)
    with failure_told_to_sweep(environment.rank):
        built = agreed(environment, lambda: build(draft_of(config, overrides, folder, task), environment, task, model))
    with built.ranks(environment) as ranks:
        with failure_told_to_sweep(environment.rank):
            from_python = task is not None or model is not None
            search = Search(built, ranks, folder, show=progress, from_python=from_python)
        return search.run()


def check(
    config: Source | None,
    overrides: Sequence[str] = (),
    *,
    world_size: int | None = None,
    task: Task | None = None,
    model: nn.Module | ModelBuilder | None = None,
) -> tuple[Build, CostReport]:
    """What `optimize` would do and cost on `world_size` ranks (default: those that were launched); trains nothing.

    Raises:
        UserError: the input is wrong.
    """
    launched = read_environment()
    planned = launched if world_size is None else replace(launched, rank=0, world_size=world_size)
    if planned.world_size < 1:
        raise UserError(Fault("--world-size", f"{world_size} is out of range", "a whole number of at least 1"))
    built = agreed(launched, lambda: build(draft_of(config, overrides, None, task), planned, task, model))
    with reproducible_threads(built.problem.device):
        return built, cost_report(built.problem, built.settings, built.shape, built.config.estimator)


def verify(
    config: Source | None,
    overrides: Sequence[str] = (),
    *,
    steps: int | None = None,
    task: Task | None = None,
    model: nn.Module | ModelBuilder | None = None,
) -> tuple[Build, Verification]:
    """Compares the task's hypergradients with independent derivatives, in float64 over a short horizon.

    Args:
        steps: inner steps; by default the run's own horizon, or 50 where that is longer (more for many buckets).

    Raises:
        UserError: the input is wrong.
    """
    environment = read_environment()
    built = agreed(
        environment, lambda: build(_exact(draft_of(config, overrides, None, task)), environment, task, model)
    )
    problem = built.problem
    buckets = max(owner.buckets for owner in problem.space.learned)
    longest = max(problem.horizon(epochs) for epochs in built.settings.epochs)
    horizon = max(min(longest, VERIFIED_STEPS), buckets) if steps is None else steps
    if horizon < buckets:
        raise UserError(Fault("--steps", f"{horizon} is out of range", f"at least {buckets}, the number of buckets"))
    with built.ranks(environment) as ranks:
        return built, compare_derivatives(problem, horizon, ranks)


def draft_of(
    config: Source | None, overrides: Sequence[str], resume: Path | None = None, task: Task | None = None
) -> Draft:
    """The config of a command with its overrides, as far as it can be read.

    Raises:
        UserError: there is none, or it is given beside a run to go on with.
    """
    if resume is not None:
        if config is not None:
            raise UserError(Fault("--resume", "goes without CONFIG", "the folder of a run, and overrides"))
        return _resumed_draft(RunFolder(resume), overrides)
    if config is None:
        raise UserError(Fault("CONFIG", "is missing", "a YAML file (or, to go on with a run, --resume RUN_DIR)"))
    if task is not None and isinstance(config, Mapping) and "task" not in config:
        config = {"task": {"name": type(task).__name__}, **config}
    return read_draft(config, overrides)


def _exact(draft: Draft) -> Draft:
    """In float64, without clipped products and pruning: these are deliberate approximations."""
    if draft.config is None:
        return draft
    exact = {"dtype": None, "clip_hvp": None, "prune": PruneConfig()}
    tangents = draft.config.tangents.model_copy(update=exact)
    return replace(draft, config=draft.config.model_copy(update={"dtype": "float64", "tangents": tangents}))


def _resumed_draft(folder: RunFolder, overrides: Sequence[str]) -> Draft:
    """The run's own config with overrides; what the checkpoint holds a number for cannot change."""
    if not folder.config.is_file():
        siblings = folder.path.parent.glob("*/config.yaml")
        near = nearest(folder.path.name, (path.parent.name for path in siblings))
        suggestion = str(folder.path.with_name(near)) if near else ""
        problem = f"{folder.path} is not the folder of a run: there is no config.yaml in it"
        raise UserError(Fault("--resume", problem, "OUTPUT_DIR/NAME of an earlier run", suggestion))
    before, draft = read_draft(folder.config), read_draft(folder.config, overrides)
    if before.config is None or draft.config is None:
        return draft
    (had, had_groups), (has, has_groups) = ((c.hyperparameters, c.inner.groups) for c in (before.config, draft.config))
    faults = [
        Fault(f"hyperparameters.{name}", "cannot change when a run is resumed", "step, min and max alone")
        for name in {**had, **has}
        if not draft.is_broken(f"hyperparameters.{name}")
        and _fixed_part(had.get(name), had_groups) != _fixed_part(has.get(name), had_groups)
    ]
    if had_groups != has_groups and not draft.is_broken("inner.groups"):
        faults.append(Fault("inner.groups", "cannot change when a run is resumed", "the groups that it began with"))
    return replace(draft, faults=[*draft.faults, *faults])


def _fixed_part(hyperparameter: HyperparameterConfig | float | None, groups: Mapping[str, str] | None) -> object:
    """What a run's checkpoint depends on."""
    if isinstance(hyperparameter, HyperparameterConfig):
        per_group = bool(hyperparameter.per_group)
        copies = map(hyperparameter.for_group, groups or ()) if per_group else [hyperparameter]
        return per_group, [(copy.init, copy.buckets, copy.scale) for copy in copies]
    return hyperparameter
