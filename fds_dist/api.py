"""The commands as functions: what `fds_dist.optimize(...)` and `fds-dist optimize ...` both call."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from torch import nn

from fds_dist.build import Build, ModelBuilder, build
from fds_dist.checkpoint import load_checkpoint, save_checkpoint
from fds_dist.config import Config, Draft, dump_config, read_draft
from fds_dist.cost import CostReport, cost_report
from fds_dist.distributed.environment import read_environment
from fds_dist.distributed.mesh import Ranks
from fds_dist.engine.monitor import Consistency, StepMonitor
from fds_dist.engine.outer_loop import OuterLoop, OuterProgress, initial_progress
from fds_dist.faults import Fault, UserError
from fds_dist.run_folder import RunFolder, create_run_folder, environment_info, write_text_atomic
from fds_dist.schedule import Schedule
from fds_dist.tasks.base import Task
from fds_dist.tracking import OuterRecord, RunEnd, RunStart, Tracker, Trackers
from fds_dist.tracking.console import ConsoleTracker
from fds_dist.tracking.history import HistoryFile, read_history
from fds_dist.tracking.tensorboard import TensorBoardTracker
from fds_dist.tracking.wandb_run import WandbTracker
from fds_dist.verification import Verification, compare_derivatives

VERIFIED_STEPS = 50

Source = str | Path | Mapping[str, Any] | Config


@dataclass(frozen=True)
class RunResult:
    """What `optimize` did; the same on every rank."""

    run_dir: Path
    schedule: Schedule
    """The values after the last update."""
    best_schedule: Schedule | None
    """The values that trained to the lowest validation loss; None where no inner run ended well."""
    history: list[OuterRecord]
    """One record per outer step."""
    converged: bool
    """Whether the step sizes fell below the tolerance before the outer steps were used up."""


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
    built = build(_draft(config, overrides, resume, task), environment, task, model)
    with Ranks(environment, built.shape, built.problem.device) as ranks:
        folder = RunFolder(_on_first_rank(ranks, lambda: _folder(built.config, resume)))
        trackers: list[Tracker] = []
        _on_first_rank(ranks, lambda: trackers.extend(_trackers(built.config, folder, progress)))
        return _Run(built, ranks, folder, Trackers(trackers), resume is not None).run()


def check(
    config: Source,
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
    environment = read_environment()
    if world_size is not None:
        if world_size < 1:
            raise UserError(Fault("--world-size", f"{world_size} is out of range", "a whole number of at least 1"))
        environment = replace(environment, rank=0, world_size=world_size)
    built = build(_draft(config, overrides, None, task), environment, task, model)
    return built, cost_report(built.problem, built.settings, built.shape)


def verify(
    config: Source,
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
    # Clipped products and pruning are deliberate approximations; everything else is verified as it is configured.
    exact = ("dtype=float64", "tangents.dtype=null", "tangents.clip_hvp=null", "tangents.prune.ratio=0.0")
    built = build(_draft(config, [*overrides, *exact], None, task), environment, task, model)
    problem = built.problem
    buckets = max(owner.buckets for owner in problem.space.learned)
    longest = max(problem.horizon(epochs) for epochs in built.settings.epochs)
    horizon = max(min(longest, VERIFIED_STEPS), buckets) if steps is None else steps
    if horizon < buckets:
        raise UserError(Fault("--steps", f"{horizon} is out of range", f"at least {buckets}, the number of buckets"))
    with Ranks(environment, built.shape, problem.device) as ranks:
        return built, compare_derivatives(problem, horizon, ranks)


def _draft(config: Source | None, overrides: Sequence[str], resume: str | Path | None, task: Task | None) -> Draft:
    if resume is not None:
        if config is not None:
            raise UserError(Fault("--resume", "goes without CONFIG", "the folder of a run, and overrides"))
        return read_draft(RunFolder(Path(resume)).config, overrides)
    if config is None:
        raise UserError(Fault("CONFIG", "is missing", "a YAML file, or --resume RUN_DIR"))
    if task is not None and isinstance(config, Mapping) and "task" not in config:
        config = {"task": {"name": type(task).__name__}, **config}
    return read_draft(config, overrides)


def _folder(config: Config, resume: str | Path | None) -> Path:
    if resume is not None:
        return Path(resume)
    model = config.model.name if config.model else None
    return create_run_folder(config.output_dir, config.name, config.task.name, model, datetime.now())


def _trackers(config: Config, folder: RunFolder, progress: bool) -> list[Tracker]:
    """Rank 0's trackers; the record itself comes first."""
    trackers: list[Tracker] = [HistoryFile(folder.history)]
    if progress:
        trackers.append(ConsoleTracker())
    if config.tracking.tensorboard:
        trackers.append(TensorBoardTracker())
    wandb = config.tracking.wandb
    trackers.append(
        WandbTracker(wandb.mode, wandb.project, wandb.entity, wandb.name, wandb.group, wandb.job_type, wandb.tags)
    )
    return trackers


def _on_first_rank(ranks: Ranks, make: Callable[[], Any]) -> Any:
    """`make()` of rank 0 on every rank; its `UserError` is raised on every rank too."""
    outcome: tuple[Any, UserError | None] = (None, None)
    if ranks.is_first:
        try:
            outcome = make(), None
        except UserError as error:
            outcome = None, error
    value, error = ranks.broadcast_object(outcome)  # type: ignore[misc]
    if error is not None:
        raise error
    return value


@dataclass
class _Run:
    """One run from its folder to its result."""

    built: Build
    ranks: Ranks
    folder: RunFolder
    trackers: Trackers
    resumed: bool

    def run(self) -> RunResult:
        """Sets out, runs the outer loop, and tells the trackers how it ended, however it ended."""
        loop = self.loop()
        progress = self.first_progress()
        if self.ranks.is_first:
            write_text_atomic(self.folder.config, dump_config(self.built.config))
            info = environment_info(self.ranks.world_size, str(self.built.problem.device))
            write_text_atomic(self.folder.environment, json.dumps(info, indent=2) + "\n")
        self.trackers.start(self.start(progress))
        for remark in self.built.remarks:
            self.trackers.note(remark)
        self.last = progress
        try:
            self.last = loop.run(progress)
        except KeyboardInterrupt:
            self.finish("interrupted", f"go on with: fds-dist optimize --resume {self.folder.path}")
            raise
        except Exception as error:
            self.finish("failed", str(error))
            raise
        self.finish("finished", "every step is below the tolerance" if self.last.converged else "")
        return self.result(loop, self.last)

    def loop(self) -> OuterLoop:
        """The outer loop, wired to this run's trackers and checkpoints."""
        consistency = Consistency(self.built.config.consistency.mode, self.built.config.consistency.every)
        return OuterLoop(
            problem=self.built.problem,
            estimator=self.built.estimator,
            rule=self.built.rule,
            settings=self.built.settings,
            ranks=self.ranks,
            trackers=self.trackers,
            make_monitor=lambda outer_step, schedule, plan: StepMonitor(
                outer_step, schedule, plan, self.ranks, self.trackers, consistency
            ),
            save=self.save,
        )

    def first_progress(self) -> OuterProgress:
        """Where to start: before the first outer step, or where the newest checkpoint stands."""
        fresh = initial_progress(self.built.problem, self.built.rule, self.built.settings)
        if not self.resumed:
            return fresh
        state = _on_first_rank(self.ranks, lambda: load_checkpoint(self.folder.checkpoints, self.trackers.note))
        if state is None:
            return fresh
        progress = OuterProgress.from_dict(state)
        if len(progress.values) != self.built.problem.space.size:
            problem = f"the checkpoint holds {len(progress.values)} learned numbers"
            expected = f"{self.built.problem.space.size}, as in this config; buckets cannot change on resuming"
            raise UserError(Fault("hyperparameters", problem, expected))
        return progress

    def start(self, progress: OuterProgress) -> RunStart:
        """What the trackers hear first."""
        return RunStart(
            run_dir=self.folder.path,
            config=self.built.config.resolved(),
            outer_steps=len(self.built.settings.epochs),
            first_outer_step=progress.outer_step,
            tangents=self.built.problem.space.size,
            world_size=self.ranks.world_size,
            device=str(self.built.problem.device),
            resumed=self.resumed,
        )

    def save(self, progress: OuterProgress) -> None:
        """After an outer step: the schedules, and a checkpoint to go on from. Rank 0 writes."""
        self.last = progress
        if not self.ranks.is_first:
            return
        loop = self.loop()
        write_text_atomic(self.folder.schedule, loop.schedule(progress.values, progress.horizon).to_json())
        if progress.best is not None:
            best = loop.schedule(progress.best[1], progress.horizon)
            write_text_atomic(self.folder.path / "schedule_best.json", best.to_json())
        save_checkpoint(
            self.folder.checkpoints, progress.outer_step, progress.to_dict(), self.built.config.checkpoint.keep
        )

    def finish(self, status: str, message: str) -> None:
        """Tells the trackers how it ended."""
        progress = self.last
        outer_step, _, val_loss, val_accuracy = progress.best or (None, None, None, None)
        end = RunEnd(
            status=status,
            message=message,
            schedule=self.built.problem.space.unpack(progress.values) if progress.outer_step else None,
            best_outer_step=outer_step,
            best_val_loss=val_loss,
            best_val_accuracy=val_accuracy,
            run_dir=self.folder.path,
        )
        self.trackers.finish(end)

    def result(self, loop: OuterLoop, progress: OuterProgress) -> RunResult:
        """The result, the same on every rank."""
        best = progress.best
        return RunResult(
            run_dir=self.folder.path,
            schedule=loop.schedule(progress.values, progress.horizon),
            best_schedule=None if best is None else loop.schedule(best[1], progress.horizon),
            history=_on_first_rank(self.ranks, lambda: read_history(self.folder.history)),
            converged=progress.converged,
        )
