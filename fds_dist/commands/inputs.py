"""What the commands share: from a config with overrides to objects, and to the ranks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from fds_dist.build import Build, ModelBuilder, build, settled, weights_file
from fds_dist.commands.meeting import agreed_draft
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.files import read_json
from fds_dist.common.out_of_memory import memory_told
from fds_dist.common.records import from_values
from fds_dist.common.values import Row
from fds_dist.config import Config, Draft, HyperparameterConfig, read_draft
from fds_dist.distributed.agreement import on_all_ranks
from fds_dist.distributed.alike import Facts, require_alike
from fds_dist.distributed.arithmetic import arithmetic_restored
from fds_dist.distributed.environment import LaunchEnvironment
from fds_dist.distributed.mesh import Ranks
from fds_dist.inner.run_facts import run_facts
from fds_dist.storage.run_folder import RunFolder
from fds_dist.tasks import build_task
from fds_dist.tasks.base import Task
from fds_dist.tracking.history import read_history
from fds_dist.tracking.wandb_session import WandbSession

Source = str | Path | Mapping[str, Any] | Config
"""A config: the path of a YAML file, a mapping, or the config itself."""


def unchanged(draft: Draft) -> Draft:
    """The draft itself."""
    return draft


@contextmanager
def launched(
    config: Source | None,
    overrides: Sequence[str] = (),
    *,
    prepare: Callable[[Draft], Draft] = unchanged,
    resume: Path | None = None,
    task: Task | None = None,
    model: nn.Module | ModelBuilder | None = None,
    spread: bool = True,
    command: str = "",
) -> Iterator[tuple[Build, Ranks]]:
    """The objects that the config describes, and the ranks of this launch; inside, the ranks can communicate.

    They have compared what they run: see `require_alike`.

    Args:
        prepare: changes the draft before anything is built, or adds faults to it.
        resume: the folder of a run to continue, in place of `config`.
        task: used in place of the config's task.
        model: used in place of the config's model.
        spread: see `settled`.
        command: the name of the command, which must be the same on all ranks.

    Raises:
        UserError: on all ranks, with the faults of all of them; or they differ.
        OutOfMemory: this rank lacks memory, or another one did before the first step.
    """

    def drafted() -> Draft:
        return prepare(draft_of(config, overrides, resume, task))

    with agreed_draft(command, drafted, resume or config) as (environment, draft), arithmetic_restored():
        rank = environment.rank if environment.distributed else None

        def built_here() -> tuple[Build, Facts]:
            began = {} if resume is None else _first_values(RunFolder(resume))
            built = build(draft, environment, task, model, began)
            return built, built_facts(built, environment)

        with memory_told(rank):
            built, facts = on_all_ranks(environment, built_here)
        require_alike(environment, facts)
        with built.ranks(environment) as ranks, memory_told(rank):  # said before the others lose this rank
            yield settled(built, ranks, spread), ranks


def built_facts(built: Build, environment: LaunchEnvironment) -> Facts:
    """What the ranks have built and chosen, each by itself; nothing where there is one."""
    if not environment.distributed:
        return {}
    return run_facts(built.problem, built.settings.horizons, built.config.consistency.mode)


def draft_of(
    config: Source | None, overrides: Sequence[str], resume: Path | None = None, task: Task | None = None
) -> Draft:
    """The config with its overrides, as far as it can be read.

    Raises:
        UserError: there is no config, or both a config and a run to continue.
    """
    if resume is not None:
        if config is not None:
            raise UserError(Fault("--resume", "cannot be combined with CONFIG", "the folder of a run, and overrides"))
        return _resumed_draft(RunFolder(resume), overrides)
    if config is None:
        raise UserError(Fault("CONFIG", "is missing", "a YAML file (or --resume RUN_DIR, to continue a run)"))
    if task is not None and isinstance(config, Mapping) and "task" not in config:
        config = {"task": {"name": type(task).__name__}, **config}
    return read_draft(config, overrides)


def _resumed_draft(folder: RunFolder, overrides: Sequence[str]) -> Draft:
    """The run's config with overrides. Settings that decide how many numbers are learned cannot change."""
    config = folder.checked("--resume", "OUTPUT_DIR/NAME of an earlier run").config
    before, draft = read_draft(config), read_draft(config, overrides)
    draft = replace(draft, remarks=())  # fds_dist wrote this config, maybe an earlier version of it
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
        faults.append(Fault("inner.groups", "cannot change when a run is resumed", "the groups of the first start"))
    return replace(draft, faults=[*draft.faults, *faults])


def _first_values(folder: RunFolder) -> Mapping[str, Row]:
    """The values of the run's first outer step; none where it has not ended one."""
    records = read_history(folder.history) if folder.history.exists() else []
    return records[0].hyperparameters if records else {}


def _fixed_part(hyperparameter: HyperparameterConfig | float | None, groups: Mapping[str, str] | None) -> object:
    """The part of a hyperparameter's settings that the numbers in a checkpoint depend on."""
    if isinstance(hyperparameter, HyperparameterConfig):
        per_group = bool(hyperparameter.per_group)
        copies = map(hyperparameter.for_group, groups or ()) if per_group else [hyperparameter]
        return per_group, [(copy.init, copy.buckets, copy.size, copy.scale, copy.shape) for copy in copies]
    return hyperparameter


def check_weights(folder: RunFolder, build_model: ModelBuilder) -> None:
    """That the networks of `build_model` start from the file `model.weights` that the run began with.

    Raises:
        UserError: it has changed, or is another one.
    """
    try:
        began = from_values(_Began, read_json(folder.environment)).weights_file
    except FileNotFoundError:
        return  # a folder without that record
    except (OSError, ValueError) as error:
        problem = f"{folder.environment} cannot be read: {error}"
        raise UserError(Fault("RUN_DIR", problem, "the file as the run wrote it, or none")) from None
    file = weights_file(build_model)
    if began and file and began.sha256 != file.digest:
        problem = f"{file.path} is not what the run of {folder.path} began with (SHA-256 {file.digest[:12]}…)"
        raise UserError(Fault("model.weights", problem, f"{began.path} as it was, with {began.sha256[:12]}…"))


@dataclass(frozen=True)
class _WeightsFile:
    path: str
    sha256: str


@dataclass(frozen=True)
class _Began:
    """The part of environment.json that says what a run's networks began with."""

    weights_file: _WeightsFile | None = None


def task_maker(config: Config, task: Task | None = None) -> Callable[[int], Task]:
    """A function seed → the config's task; always `task` if that is not None."""
    if task is not None:
        return lambda seed: task
    return lambda seed: build_task(config.task.name, config.task.options, seed=seed)


def one_run_per_rank(draft: Draft) -> Draft:
    """The draft of a study, which trains a separate run on each rank. A mesh that spreads one run is a fault."""
    if draft.config is None:
        return draft
    mesh = draft.config.mesh
    faults = [
        Fault(f"mesh.{axis}", f"{size} is not possible here: each rank trains a separate run", "1")
        for axis, size in (("data", mesh.data), ("replica", mesh.replica))
        if size > 1
    ]
    return replace(draft, faults=[*draft.faults, *faults])


def study_folder(config: Config, study: str) -> Path:
    """`OUTPUT_DIR/NAME`; without a name `OUTPUT_DIR/STUDY-TASK-MODEL`, so that a repeated study continues there."""
    parts = [study, config.task.name, *([config.model.name] if config.model and config.model.name else [])]
    name = config.name or "-".join(re.sub(r"[^A-Za-z0-9_.-]+", "-", part) for part in parts)
    return Path(config.output_dir) / name


def folder_key(config: Config) -> str:
    """The key that decides about `study_folder`."""
    return "name" if config.name else "output_dir"


def wandb_session(config: Config, job_type: str, group: str) -> WandbSession:
    """The session that `tracking.wandb` asks for.

    Args:
        job_type: the kind of the W&B run if neither the config nor the environment sets one.
        group: the name of the search, under which W&B shows it with its retrainings, if neither of them sets one.

    Raises:
        UserError: WANDB_MODE is not a mode.
    """
    options = config.tracking.wandb
    told = {name: value for name, value in options if name not in ("scalars", "code")}
    return WandbSession(**told, usual_job_type=job_type, usual_group=options.name or group)
