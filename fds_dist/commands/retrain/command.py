"""`fds-dist retrain`: trains with the schedule that a run learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from fds_dist.build import ModelBuilder, model_builder
from fds_dist.commands.inputs import check_weights, task_maker, wandb_session
from fds_dist.commands.meeting import met, version_facts
from fds_dist.commands.retrain.facts import data_facts, setting_facts
from fds_dist.commands.retrain.records import RetrainResult
from fds_dist.commands.retrain.reporting import ConsoleReporter, Reporter, WandbReporter
from fds_dist.commands.retrain.resuming import digests_of
from fds_dist.commands.retrain.settings import RetrainSettings, read_settings
from fds_dist.commands.retrain.trainer import retrain as retrain_seeds
from fds_dist.commands.run import RunSource, model_of, run_path, task_of
from fds_dist.common.out_of_memory import memory_told
from fds_dist.config import Config, load_config, read_draft
from fds_dist.distributed.agreement import on_all_ranks, told_by_all
from fds_dist.distributed.alike import require_alike
from fds_dist.distributed.arithmetic import Arithmetic, arithmetic_restored
from fds_dist.distributed.devices import set_up
from fds_dist.distributed.environment import LaunchEnvironment
from fds_dist.distributed.mesh import MeshShape, Ranks
from fds_dist.schedule.schedule import Schedule
from fds_dist.storage.lock import locked
from fds_dist.storage.run_folder import RESULT, RunFolder
from fds_dist.tasks.base import Task


@dataclass(frozen=True)
class Retraining:
    """The result of `retrain`, the same on every rank."""

    folder: Path
    """Holds `summary.json`, and a folder for each seed."""
    settings: RetrainSettings
    results: list[RetrainResult]
    """One per seed."""


def retrain(
    run_dir: RunSource,
    overrides: Sequence[str] = (),
    *,
    task: Task | None = None,
    model: nn.Module | ModelBuilder | None = None,
    progress: bool = True,
) -> Retraining:
    """Trains from scratch on all training data, with the schedule that a run learned.

    Under a launcher, call it alike on every rank. Called again with the same settings, it continues where an earlier
    call stopped.

    Args:
        run_dir: the run's folder, or what `optimize` returned, whose task and model are used again.
        overrides: `key=value` settings, such as `epochs=50`; `fds-dist retrain --help` lists them.
        task: an object used in place of the task that the run's config names.
        model: a module or a function from a seed to one, used in place of the model that the run's config names.
        progress: whether rank 0 prints the progress.

    Returns:
        The folder with weights and records, and the result of each seed.

    Raises:
        UserError: there is no such run, or a setting is wrong.

    Example:
        >>> done = fds_dist.retrain("runs/digits", ["epochs=2", "seed=0", "seeds=2"], progress=False)
        >>> [result.seed for result in done.results]
        [0, 1]
    """
    folder = RunFolder(run_path(run_dir))
    task, model = task_of(run_dir, task), model_of(run_dir, model)
    with (
        met("retrain", lambda: read_draft(folder.config).config, folder.path) as environment,
        arithmetic_restored(),
    ):
        config, schedule, settings = on_all_ranks(environment, lambda: _read(folder, overrides))
        # A network file system may show another rank what was there before the search wrote its result, a moment ago.
        schedule = Schedule.from_json(told_by_all(environment, schedule.to_json())[0])
        for facts in (setting_facts(config, settings), version_facts(config)):
            require_alike(environment, facts)
        arithmetic = Arithmetic(config.consistency.mode == "verify", config.precision)
        chosen = on_all_ranks(environment, lambda: set_up(config.device, arithmetic, environment))
        make_task = task_maker(config, task)
        first_task = on_all_ranks(environment, lambda: make_task(settings.seed))
        build_model = on_all_ranks(environment, lambda: model_builder(config, first_task, model))
        on_all_ranks(environment, lambda: check_weights(folder, build_model))
        built = first_task, build_model, settings, chosen.device, environment
        require_alike(environment, on_all_ranks(environment, lambda: data_facts(*built)))
        target = folder.path / ("retrain" if settings.schedule == RESULT else f"retrain-{settings.schedule}")
        session = on_all_ranks(environment, lambda: wandb_session(config, "retrain", folder.path.name))
        reporters: list[Reporter] = [_console(chosen.remarks, environment)] if progress else []
        reporters.append(WandbReporter(session, target, {**config.resolved(), "retrain": settings.resolved()}))
        data = digests_of(config.resolved())
        shape, kept = MeshShape(1, environment.world_size, 1), config.checkpoint
        rank = environment.rank if environment.distributed else None
        with (
            Ranks(environment, shape, chosen.device) as ranks,
            memory_told(rank),
            locked(target, "fds-dist retrain", "RUN_DIR", ranks),
        ):
            results = retrain_seeds(make_task, build_model, schedule, settings, ranks, target, reporters, kept, data)
    return Retraining(target, settings, results)


def _console(remarks: Sequence[str], environment: LaunchEnvironment) -> ConsoleReporter:
    """The reporter that prints; rank 0 begins with `remarks`."""
    reporter = ConsoleReporter()
    for remark in remarks if environment.rank == 0 else ():
        reporter.note(remark)
    return reporter


def _read(folder: RunFolder, overrides: Sequence[str]) -> tuple[Config, Schedule, RetrainSettings]:
    """The run's config, the schedule to train with, and the settings."""
    config = load_config(folder.checked().config)
    settings = read_settings(overrides, config)
    return config, Schedule.load(folder.candidate(settings.schedule)), settings
