"""One search from its folder to its result: the files it writes, its trackers, how it resumes and how it ends."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import partial

from fds_dist.build import Build
from fds_dist.commands.inputs import wandb_session
from fds_dist.commands.optimize.callbacks import Callbacks
from fds_dist.commands.optimize.code import own_files
from fds_dist.commands.optimize.from_python import FromPython
from fds_dist.commands.optimize.next_steps import next_steps
from fds_dist.commands.optimize.origin import Place, write_origin
from fds_dist.commands.optimize.outcome import Outcome, Outcomes, estimator_settings, inner_settings
from fds_dist.commands.optimize.resume import checkpoint_content, first_progress, going_on, nothing_left
from fds_dist.commands.optimize.work import judging_steps, outer_work
from fds_dist.commands.report.live import LivePage
from fds_dist.commands.run import RunResult
from fds_dist.common.faults import UserError
from fds_dist.common.files import WriteFailed
from fds_dist.common.interruptions import defer_signals
from fds_dist.common.out_of_memory import OutOfMemory
from fds_dist.common.words import counted
from fds_dist.distributed.endings import graceful
from fds_dist.distributed.errors import RankLost
from fds_dist.distributed.fingerprint import RunsDiverged
from fds_dist.distributed.mesh import Ranks
from fds_dist.inner.checkpoints import InnerCheckpoints, kind_of
from fds_dist.inner.estimators import Estimate
from fds_dist.inner.monitor import BatchesDiffer, Consistency, StepMonitor, compare_validation
from fds_dist.inner.plan import Plan, estimator_cost
from fds_dist.outer.loop import HypergradientsNotFinite, OuterListener, OuterLoop
from fds_dist.outer.progress import OuterProgress
from fds_dist.outer.replicas import run_number
from fds_dist.schedule.schedule import Schedule
from fds_dist.storage.checkpoints import remove_folders, save_checkpoint
from fds_dist.tracking.callbacks import Stop
from fds_dist.tracking.console import ConsoleTracker
from fds_dist.tracking.curves import CurvesFile
from fds_dist.tracking.history import HistoryFile, read_history
from fds_dist.tracking.records import InnerBlock, OuterRecord, RunEnd, RunStart
from fds_dist.tracking.tensorboard import TensorBoardTracker
from fds_dist.tracking.trackers import Tracker, Trackers
from fds_dist.tracking.wandb_run import WandbTracker

EXPLAINED = (UserError, WriteFailed, HypergradientsNotFinite, RunsDiverged, BatchesDiffer, RankLost, OutOfMemory)
"""Errors whose message is enough: the command line prints it without a traceback."""


class Search(OuterListener):
    """The outer loop of `built`, connected to its folder, trackers, callbacks and checkpoints.

    Args:
        place: see `search_place`.
        show: whether rank 0 prints the progress.
        handed: what the caller in Python handed in beside the config.

    Raises:
        UserError: the checkpoint does not fit the config.
    """

    def __init__(self, built: Build, ranks: Ranks, place: Place, show: bool, handed: FromPython) -> None:
        self.ranks = ranks
        self.show, self.handed = show and ranks.is_first, handed
        self.folder, self.launch, self.resumed = place.folder, place.launch, place.resumed
        self.built = built = going_on(built, ranks, self.folder) if self.resumed else built
        self.trackers = Trackers(self._rank_0_trackers() if ranks.is_first else [])
        self.page = LivePage(self.folder, self.trackers.note)
        self.callbacks = Callbacks(handed.callbacks, ranks)
        self.loop = OuterLoop(
            problem=built.problem,
            estimator=built.estimator,
            rule=built.rule,
            settings=built.settings,
            ranks=ranks,
            trackers=self.trackers,
            listener=self,
        )
        self.notes = list(built.remarks)
        self.progress = first_progress(built, ranks, self.folder if self.resumed else None, self.notes.append)
        self.outcomes = Outcomes(built, self.folder)
        self.outcome: Outcome | None = None
        self.stage = ""

    def run(self) -> RunResult:
        """Runs the remaining outer steps and judges the result. Trackers and callbacks learn how it ended, after an
        exception too."""
        reason = nothing_left(self.built, self.progress) if self.resumed else ""
        if reason and self.outcomes.is_settled(self.progress, self._history(), self.ranks):
            if self.show:
                ConsoleTracker().note(reason)
            return self._result()
        write = partial(write_origin, self.folder, self.built, self.ranks, self.launch)
        self.ranks.on_first(write)
        try:
            ending = self._outer_steps()
            self._settle()
        except KeyboardInterrupt as error:
            loss = error.__cause__
            self._finish("interrupted", self._where if loss is None else f"{self._where}, without a checkpoint: {loss}")
            raise
        except EXPLAINED as error:
            self._finish("failed", str(error))
            raise
        except Exception as error:
            self._finish("failed", f"{type(error).__name__}: {error}")
            raise
        self._finish("finished", ending)
        return self._result()

    def _outer_steps(self) -> str:
        """Runs the remaining outer steps; says why there are fewer than the config asks for, or ""."""
        if self.progress.outer_step:
            self.outcome = self.outcomes.unjudged(self.progress, self._history())
        start = self._start()
        self.ranks.on_first(partial(self.trackers.start, start))
        for note in self.notes:
            self.trackers.note(note)
        try:
            self.callbacks.run_start(start)
            with graceful(self.built.config.checkpoint.grace, self._last_words):
                self.progress = self.loop.run(self.progress)
        except Stop as stop:
            return f"{_done(self.progress)}, stopped by {stop}"
        return self.built.settings.ending(self.progress)

    @property
    def _where(self) -> str:
        return f"stopped {self.stage or f'in outer step {self.progress.outer_step}'}"

    def _last_words(self) -> None:
        """What rank 0 says, without its trackers, where it can only leave: see `Grace`."""
        if self.show:
            steps = next_steps(self.folder.path, self.built, "interrupted", self.progress, self.handed.replaces_config)
            words = f"interrupted: {self._where}, without a checkpoint: another rank does not answer"
            os.write(2, f"fds-dist: {words}; to continue: {steps['continue']}\n".encode())

    def _settle(self) -> None:
        """Judges the candidates and writes the result; there is none before the first outer step is done."""
        if self.progress.outer_step:
            self.stage = "while judging"
            self.outcome = self.outcomes.judged(self.progress, self._history(), self.ranks, self.trackers.note)
            self.ranks.on_first(partial(self.outcome.write, self.folder))

    def _history(self) -> list[OuterRecord]:
        """The record of each outer step, on every rank."""
        path = self.folder.history
        return self.ranks.on_first(lambda: read_history(path) if path.is_file() else [])

    def _rank_0_trackers(self) -> list[Tracker]:
        """The trackers of rank 0; the file of the record comes first."""
        trackers: list[Tracker] = [HistoryFile(self.folder.history), CurvesFile(self.folder.curves)]
        if self.show:
            trackers.append(ConsoleTracker())
        if self.built.config.tracking.tensorboard:
            trackers.append(TensorBoardTracker())
        wandb = self.built.config.tracking.wandb
        session = wandb_session(self.built.config, "optimize", self.folder.path.name)
        trackers.append(WandbTracker(session, wandb.scalars, own_files(self.built.config) if wandb.code else ()))
        return [*trackers, *self.handed.trackers]

    def _start(self) -> RunStart:
        return RunStart(
            run_dir=self.folder.path,
            config=self.built.config.resolved(),
            outer_steps=len(self.built.settings.horizons),
            first_outer_step=self.progress.outer_step,
            tangents=self.built.problem.space.size,
            world_size=self.ranks.world_size,
            device=str(self.built.problem.device),
            resumed=self.resumed,
            work=outer_work(self.built),
            judging=judging_steps(self.built, self.ranks.world_size),
            places=self.loop.schedule(self.progress.values, self.progress.horizon).places,
        )

    def monitor(self, outer_step: int, schedule: Schedule, plan: Plan) -> StepMonitor:
        """See `OuterListener`: sends losses to the trackers, and compares the ranks."""
        options = self.built.config.consistency
        consistency = Consistency(options.mode, options.every)
        return StepMonitor(outer_step, schedule, plan, self.ranks, self._block, consistency)

    def estimated(self, outer_step: int, estimate: Estimate) -> None:
        """See `OuterListener`."""
        compare_validation(outer_step, estimate.val_loss, self.ranks, self.built.config.consistency.mode)

    def _block(self, block: InnerBlock) -> None:
        self.trackers.inner(block)
        self.callbacks.inner_block(block)

    def save(self, progress: OuterProgress) -> None:
        """See `OuterListener`: rank 0 writes the schedules and a checkpoint."""
        self.progress = progress
        self.ranks.on_first(partial(self._write, progress))

    def _write(self, progress: OuterProgress) -> None:
        self.outcome = self.outcomes.unjudged(progress, read_history(self.folder.history))
        self.outcome.write(self.folder)
        keep = self.built.config.checkpoint.keep
        save_checkpoint(self.folder.checkpoints, progress.outer_step, checkpoint_content(progress, self.built), keep)
        for replica in range(self.built.shape.replica):
            remove_folders(self.folder.checkpoints, kind_of(replica, self.built.shape.replica))

    def done(self, record: OuterRecord) -> None:
        """See `OuterListener`."""
        if self.show:
            self.page.outer_step()
        self.callbacks.outer_step(record)

    def checkpointer(self, outer_step: int, values: Sequence[float], horizon: int) -> InnerCheckpoints:
        """See `OuterListener`."""
        config, options = self.built.config, self.built.config.checkpoint
        run = {**dict(inner_settings(self.built)), **estimator_settings(config)}
        is_reverse = config.estimator == "reverse"
        run |= {"mesh": {"batch_norm": config.mesh.batch_norm}, "outer_step": outer_step, "values": list(values)}
        if self.built.shape.replica > 1:
            run |= {"run_number": run_number(outer_step, self.ranks)}
        return InnerCheckpoints(
            folder=self.folder.checkpoints,
            run=json.loads(json.dumps(run)),
            horizon=2 * horizon if is_reverse else horizon,
            ranks=self.ranks.one_replica(),
            seconds=options.every_seconds,
            count=options.keep,
            meeting=config.consistency.every,
            note=lambda text: self.trackers.note(f"outer step {outer_step}: {text}"),
            grace=options.grace,
            kind=kind_of(self.ranks.replica, self.built.shape.replica),
            remark=", there and back" if is_reverse else "",
        )

    @defer_signals()
    def _finish(self, status: str, message: str) -> None:
        progress = self.progress
        outer_step, _, val_loss, val_accuracy = progress.best or (None, None, None, None)
        end = RunEnd(
            status=status,
            message=message,
            schedule=self.outcome.schedule.values if self.outcome else None,
            places=self.outcome.schedule.places if self.outcome else {},
            result=self.outcome.name if self.outcome else None,
            verdict=self.outcome.verdict if self.outcome else None,
            best_outer_step=outer_step,
            best_val_loss=val_loss,
            best_val_accuracy=val_accuracy,
            run_dir=self.folder.path,
            plain_steps=self._plain_steps(),
            report=self.page.finish() if self.show and progress.outer_step else None,
            next_steps=next_steps(self.folder.path, self.built, status, progress, self.handed.replaces_config),
        )
        for fault in self.callbacks.run_end(end):
            self.trackers.note(fault)
        self.trackers.finish(end)

    def _plain_steps(self) -> float:
        """The cost of the outer steps so far over all replicas, in plain training steps."""
        built = self.built
        horizons = built.settings.horizons[: self.progress.outer_step]
        config = built.config
        settings = config.greedy.discount, config.random_directions.count
        costs = [estimator_cost(config.estimator, built.problem, horizon, *settings) for horizon in horizons]
        return built.shape.replica * sum(costs)

    def _result(self) -> RunResult:
        """The same on every rank."""
        history = self._history()
        outcome = self.outcome or self.outcomes.judged(self.progress, history, self.ranks, self.trackers.note)
        schedules = outcome.schedules
        return RunResult(
            run_dir=self.folder.path,
            schedule=outcome.schedule,
            best_schedule=schedules.get("best"),
            last_schedule=schedules["last"],
            average_schedule=schedules.get("average"),
            verdict=outcome.verdict,
            history=history,
            config=self.built.config.resolved(),
            converged=self.progress.converged,
            task=self.handed.task,
            model=self.handed.model,
        )


def _done(progress: OuterProgress) -> str:
    return f"{counted(progress.outer_step, 'outer step')} done"
