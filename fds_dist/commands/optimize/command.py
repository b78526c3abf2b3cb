"""`fds-dist optimize`: learns the schedules that a config asks for."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from torch import nn

from fds_dist.build import ModelBuilder
from fds_dist.commands.inputs import Source, launched
from fds_dist.commands.optimize.from_python import FromPython
from fds_dist.commands.optimize.origin import search_place
from fds_dist.commands.optimize.search import Search
from fds_dist.commands.run import RunResult, RunSource, model_of, run_path, task_of
from fds_dist.distributed.environment import read_environment
from fds_dist.inner.kernels import check_alike
from fds_dist.tasks.base import Task
from fds_dist.tracking.callbacks import Callback
from fds_dist.tracking.trackers import Tracker
from fds_dist.tracking.wandb_session import report_failure_to_sweep


def optimize(
    config: Source | None = None,
    overrides: Sequence[str] = (),
    *,
    task: Task | None = None,
    model: nn.Module | ModelBuilder | None = None,
    callbacks: Sequence[Callback] = (),
    trackers: Sequence[Tracker] = (),
    resume: RunSource | None = None,
    progress: bool = True,
) -> RunResult:
    """Learns the schedules that `config` asks for. Under a launcher, call it alike on every rank.

    Args:
        config: a YAML file, or the config as a mapping; None with `resume`.
        overrides: `key.sub=value` strings.
        task: an object used in place of the config's task; see `fds_dist.task_from_datasets`.
        model: a module or a function from a seed to one, used in place of the config's model.
        callbacks: objects that follow the search and may stop it; see `fds_dist.Callback`.
        trackers: objects that record the search beside the config's trackers; see `fds_dist.Tracker`.
        resume: a run to continue: its folder, or an earlier result, whose task and model are used again.
        progress: whether rank 0 prints the progress.

    Returns:
        The learned schedule, the best schedule, the record of every outer step, and the run's folder.

    Raises:
        UserError: the input is wrong, and nothing was trained; or a callback failed.
        HypergradientsNotFinite, RunsDiverged, BatchesDiffer, RankLost: the run cannot continue; its folder holds
            everything up to the last outer step.
        WriteFailed: the same, because a file could not be written.

    Example:
        >>> config = {
        ...     "task": {"name": "digits"},
        ...     "model": {"name": "mlp", "hidden": [8]},
        ...     "hyperparameters": {"lr": {"buckets": 2}, "momentum": 0.9},
        ... }
        >>> result = fds_dist.optimize(config, ["name=digits", "outer.steps=2"], progress=False)
        >>> str(result.run_dir), len(result.schedule.values["lr"])
        ('runs/digits', 2)
    """
    folder = None if resume is None else run_path(resume, "--resume")
    task, model = task_of(resume, task), model_of(resume, model)
    handed = FromPython(task, model, callbacks, trackers)
    with ExitStack() as stack:
        with report_failure_to_sweep(read_environment().rank):
            built, ranks = stack.enter_context(
                launched(
                    config,
                    overrides,
                    prepare=handed.prepare,
                    resume=folder,
                    task=task,
                    model=model,
                    command="optimize",
                )
            )
            check_alike(built.problem, ranks, built.config.consistency.mode, built.config.estimator)
            place = stack.enter_context(search_place(built, ranks, folder, handed.model_name))
            search = Search(built, ranks, place, show=progress, handed=handed)
        return search.run()
