"""What comes after and around a search: retraining with its schedule, noise analysis, and the rivals beside it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fds_dist.api import Source, draft_of
from fds_dist.bench import BenchReport, run_bench
from fds_dist.build import Build, build, model_builder
from fds_dist.compare import Comparison, plot_comparison
from fds_dist.compare import compare as compare_methods
from fds_dist.config import Config, Draft, load_config
from fds_dist.distributed.agreement import agreed
from fds_dist.distributed.environment import read_environment
from fds_dist.distributed.mesh import MeshShape, Ranks, choose_device
from fds_dist.engine.monitor import Consistency
from fds_dist.faults import Fault, UserError
from fds_dist.noise import NoiseReport, cosine_schedule, measure_noise, plot_noise, write_noise
from fds_dist.report import PAGE, read_run, write_report
from fds_dist.retrain import ConsoleReporter, Reporter, RetrainResult, RetrainSettings, WandbReporter, read_settings
from fds_dist.retrain import retrain as retrain_seeds
from fds_dist.run import wandb_options
from fds_dist.run_folder import RunFolder
from fds_dist.schedule import Schedule
from fds_dist.tasks import build_task
from fds_dist.tasks.base import Task
from fds_dist.tracking.wandb_session import WandbSession

NOISE_STEPS = 250
NOISE_RUNS = 100


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

    config, schedule, settings = agreed(environment, read)
    device, faults = choose_device(config.device, environment)
    if faults:
        raise UserError(faults)

    make_task = _task_maker(config)
    build_model = agreed(environment, lambda: model_builder(config, make_task(settings.seed)))
    target = folder.path / ("retrain-best" if settings.schedule == "best" else "retrain")
    session = agreed(environment, lambda: WandbSession(**wandb_options(config), usual_job_type="retrain"))
    with Ranks(environment, MeshShape(1, environment.world_size, 1), device) as ranks:
        reporters: list[Reporter] = [ConsoleReporter()] if show else []
        shown = {**config.resolved(), "retrain": settings.resolved()}
        reporters.append(WandbReporter(session, target, shown))
        results = retrain_seeds(make_task, build_model, schedule, settings, ranks, target, reporters)
    return Retraining(target, settings, results)


def noise(
    config: Source | None, overrides: Sequence[str] = (), *, runs: int = NOISE_RUNS, steps: int = NOISE_STEPS
) -> tuple[NoiseReport, Path]:
    """Measures hypergradient noise against window size at the paper's cosine schedule; returns its folder too.

    Raises:
        UserError: the input is wrong.
    """
    environment = read_environment()
    built = agreed(environment, lambda: build(_one_run_per_rank(draft_of(config, overrides)), environment))
    folder = study_folder(built.config, "noise")
    with built.ranks(environment) as ranks:
        folder.mkdir(parents=True, exist_ok=True)
        schedule = cosine_schedule(built.problem, steps)
        report = measure_noise(built.problem, schedule, steps, runs, ranks, folder)
        if ranks.is_first:
            write_noise(report, folder / "noise.json")
            plot_noise(report, folder / "noise")
    return report, folder


BENCHED: dict[str, Any] = {
    "task": {"name": "digits", "batch_size": 64},
    "model": {"name": "lenet"},
    "hyperparameters": {
        "lr": {"init": 0.05, "step": 0.1, "buckets": 5},
        "momentum": {"init": 0.5, "step": 0.1},
        "weight_decay": {"init": 1e-4, "step": 1e-4},
    },
}
"""What is measured where no config is given."""


def bench(config: Source | None = None, overrides: Sequence[str] = ()) -> BenchReport:
    """Measures the cost model's figures for `config`, or for a small network on digits, on the ranks of this launch.

    Raises:
        UserError: the input is wrong.
    """
    environment = read_environment()
    source = BENCHED if config is None else config
    built = agreed(environment, lambda: build(_one_run_per_rank(draft_of(source, overrides)), environment))
    with built.ranks(environment) as ranks:
        return run_bench(built.problem, ranks)


def compare(config: Source | None, overrides: Sequence[str] = ()) -> tuple[Comparison, Path]:
    """Runs FDS and its rivals at equal compute; returns its folder too. A second call goes on where one stopped.

    Raises:
        UserError: the input is wrong, or the folder holds a comparison of something else.
    """
    environment = read_environment()
    built = agreed(environment, lambda: build(_one_run_per_rank(draft_of(config, overrides)), environment))
    folder = study_folder(built.config, "compare")
    with built.ranks(environment) as ranks:
        folder.mkdir(parents=True, exist_ok=True)
        comparison = _compared(built, ranks, folder)
        if ranks.is_first:
            plot_comparison(comparison, folder)
    return comparison, folder


def _compared(built: Build, ranks: Ranks, folder: Path) -> Comparison:
    config = built.config
    settings = read_settings([f"seeds={max(1, config.compare.retrain_seeds)}"], config)
    build_model = model_builder(config, built.problem.task)

    def retrained(schedule: Schedule, target: Path) -> list[float]:
        results = retrain_seeds(_task_maker(config), build_model, schedule, settings, ranks, target)
        accuracies = [result.final.test_accuracy for result in results]
        return [accuracy for accuracy in accuracies if accuracy is not None]

    return compare_methods(
        built.problem,
        built.rule,
        built.settings,
        config.estimator,
        config.compare,
        ranks,
        folder,
        greedy_discount=config.greedy.discount,
        say=print,
        consistency=Consistency(config.consistency.mode, config.consistency.every),
        retrain=retrained,
    )


def _task_maker(config: Config) -> Callable[[int], Task]:
    """seed → the config's task."""
    return lambda seed: build_task(config.task.name, config.task.options, seed=seed)


def report(run_dirs: Sequence[str | Path], output: str | Path | None = None) -> Path:
    """Writes the report of one run, or of several side by side, on rank 0; returns the page's path.

    Args:
        output: the folder to write to. None: `report` in the run's folder, or beside the first of several.

    Raises:
        UserError: one of them is no run's folder, or the report's cannot be made.
    """
    paths = [Path(run_dir) for run_dir in run_dirs]
    runs, faults = [], []
    for path in paths:
        try:
            runs.append(read_run(path))
        except UserError as error:
            faults += error.faults
    if faults:
        raise UserError(faults)
    usual = RunFolder(paths[0]).report if len(paths) == 1 else paths[0].parent / "report"
    folder = usual if output is None else Path(output)
    return folder / PAGE if read_environment().rank else write_report(runs, folder)


def _one_run_per_rank(draft: Draft) -> Draft:
    """The draft, with faults where it spreads one inner run: a study trains on each rank a run of its own."""
    if draft.config is None:
        return draft
    mesh = draft.config.mesh
    faults = [
        Fault(f"mesh.{axis}", f"{size} has no meaning in a study, whose ranks each train a run of their own", "1")
        for axis, size in (("data", mesh.data), ("replica", mesh.replica))
        if size > 1
    ]
    return replace(draft, faults=[*draft.faults, *faults])


def study_folder(config: Config, study: str) -> Path:
    """`OUTPUT_DIR/STUDY-TASK-MODEL` (or `OUTPUT_DIR/NAME`): the same for the same config, so that a study goes on."""
    parts = [study, config.task.name, *([config.model.name] if config.model else [])]
    name = config.name or "-".join(re.sub(r"[^A-Za-z0-9_.-]+", "-", part) for part in parts)
    return Path(config.output_dir) / name
