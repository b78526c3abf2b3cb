"""`fds-dist retrain`: trains with the schedule that a run learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fds_dist.build import model_builder
from fds_dist.commands.inputs import task_maker, wandb_options
from fds_dist.commands.retrain.records import RetrainResult
from fds_dist.commands.retrain.reporting import ConsoleReporter, Reporter, WandbReporter
from fds_dist.commands.retrain.settings import RetrainSettings, read_settings
from fds_dist.commands.retrain.trainer import retrain as retrain_seeds
from fds_dist.common.faults import Fault, UserError
from fds_dist.config import Config, load_config
from fds_dist.distributed.agreement import on_all_ranks
from fds_dist.distributed.environment import read_environment
from fds_dist.distributed.mesh import MeshShape, Ranks, choose_device
from fds_dist.schedule.schedule import Schedule
from fds_dist.storage.run_folder import RunFolder
from fds_dist.tracking.wandb_session import WandbSession


@dataclass(frozen=True)
class Retraining:
    """Where a retraining is, and what came of it."""

    folder: Path
    settings: RetrainSettings
    results: list[RetrainResult]


def retrain(run_dir: str | Path, overrides: Sequence[str] = (), *, show: bool = True) -> Retraining:
    """Trains from scratch on the whole training set by the schedule that the run in `run_dir` learned.

    Args:
        overrides: `key=value` settings; see `fds_dist.retrain.RetrainSettings`.
        show: whether rank 0 prints how it goes.

    Raises:
        UserError: no such run, or settings that are wrong.
    """
    environment, folder = read_environment(), RunFolder(Path(run_dir))

    def read() -> tuple[Config, Schedule, RetrainSettings]:
        if not folder.config.is_file():
            raise UserError(Fault("RUN_DIR", f"{folder.path} is not the folder of a run", "OUTPUT_DIR/NAME"))
        config = load_config(folder.config)
        settings = read_settings(overrides, config)
        return config, Schedule.load(folder.best_schedule if settings.schedule == "best" else folder.schedule), settings

    config, schedule, settings = on_all_ranks(environment, read)
    device, faults = choose_device(config.device, environment)
    if faults:
        raise UserError(faults)

    make_task = task_maker(config)
    build_model = on_all_ranks(environment, lambda: model_builder(config, make_task(settings.seed)))
    target = folder.path / ("retrain-best" if settings.schedule == "best" else "retrain")
    session = on_all_ranks(environment, lambda: WandbSession(**wandb_options(config), usual_job_type="retrain"))
    with Ranks(environment, MeshShape(1, environment.world_size, 1), device) as ranks:
        reporters: list[Reporter] = [ConsoleReporter()] if show else []
        shown = {**config.resolved(), "retrain": settings.resolved()}
        reporters.append(WandbReporter(session, target, shown))
        results = retrain_seeds(make_task, build_model, schedule, settings, ranks, target, reporters)
    return Retraining(target, settings, results)
