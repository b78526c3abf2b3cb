"""`fds-dist compare`: FDS and its rivals over one config."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from torch import nn

from fds_dist.build import Build, ModelBuilder, model_builder
from fds_dist.commands.compare.comparison import Retrain
from fds_dist.commands.compare.comparison import compare as compare_methods
from fds_dist.commands.compare.job import Job
from fds_dist.commands.compare.mirror import log_comparison
from fds_dist.commands.compare.plot import plot_comparison
from fds_dist.commands.compare.results import Comparison
from fds_dist.commands.compare.table import print_comparison
from fds_dist.commands.inputs import (
    Source,
    folder_key,
    launched,
    one_run_per_rank,
    study_folder,
    task_maker,
    wandb_session,
)
from fds_dist.commands.retrain.settings import read_settings
from fds_dist.commands.retrain.trainer import retrain as retrain_seeds
from fds_dist.common.console import Count, as_html, counting
from fds_dist.common.faults import Fault, UserError
from fds_dist.config import Config
from fds_dist.distributed.mesh import Ranks
from fds_dist.inner.monitor import Consistency
from fds_dist.schedule.schedule import Schedule
from fds_dist.storage.lock import locked
from fds_dist.tasks.base import Task


@dataclass(frozen=True)
class CompareResult:
    """What `compare` measured; the same on every rank."""

    comparison: Comparison
    folder: Path
    """Holds `compare.json`, the plots, and every method's record."""

    def _repr_html_(self) -> str:
        return as_html(partial(print_comparison, self.comparison))


def compare(
    config: Source | None,
    overrides: Sequence[str] = (),
    *,
    task: Task | None = None,
    model: nn.Module | ModelBuilder | None = None,
    progress: bool = True,
) -> CompareResult:
    """Compares FDS with its rivals at equal compute.

    Called again with the same config, it continues where an earlier call stopped.

    Args:
        config: a YAML file, or the config as a mapping; its `compare` section names the methods.
        overrides: `key.sub=value` strings.
        task: an object used in place of the config's task.
        model: a module or a function from a seed to one, used in place of the config's model.
        progress: whether rank 0 prints the progress of each search.

    Returns:
        Every method's runs, costs and losses, and the folder with the plots.

    Raises:
        UserError: the input is wrong, or the folder holds another comparison.

    Example:
        >>> config = {
        ...     "task": {"name": "digits"},
        ...     "model": {"name": "mlp", "hidden": [8]},
        ...     "hyperparameters": {"lr": {"init": 0.1, "step": 0.05}, "momentum": 0.9},
        ...     "outer": {"steps": 1},
        ...     "compare": {"methods": ["fds", "greedy"], "seeds": 1, "judge_seeds": 1},
        ... }
        >>> result = fds_dist.compare(config, progress=False)
        >>> [run.method for run in result.comparison.runs]
        ['fds', 'greedy']
    """
    with launched(
        config, overrides, prepare=one_run_per_rank, task=task, model=model, spread=False, command="compare"
    ) as launch:
        built, ranks = launch
        if built.config.estimator == "random_directions":
            raise UserError(Fault("estimator", "random_directions is not compared", "forward, reverse or greedy"))
        folder = study_folder(built.config, "compare")
        retrain = _retrainer(built, ranks, task, model)
        with locked(folder, "fds-dist compare", folder_key(built.config), ranks):
            show, say = progress and ranks.is_first, print if progress else _say_nothing
            with counting("compare", "plain steps", Console(stderr=True), show=show) as count:
                comparison = _compared(built, ranks, folder, retrain, say, count)
            ranks.on_first(partial(plot_comparison, comparison, folder))
            ranks.on_first(partial(_mirrored, built.config, comparison, folder, say))
    return CompareResult(comparison, folder)


def _retrainer(built: Build, ranks: Ranks, task: Task | None, model: nn.Module | ModelBuilder | None) -> Retrain:
    """A function that trains on all training data with a learned schedule; it returns each seed's test accuracy."""
    config = built.config
    settings = read_settings([f"seeds={max(1, config.compare.retrain_seeds)}"], config)
    build_model = model_builder(config, built.problem.task, model)

    def retrained(schedule: Schedule, folder: Path) -> list[float]:
        results = retrain_seeds(task_maker(config, task), build_model, schedule, settings, ranks, folder)
        accuracies = [result.final.test_accuracy for result in results]
        return [accuracy for accuracy in accuracies if accuracy is not None]

    return retrained


def _compared(
    built: Build, ranks: Ranks, folder: Path, retrain: Retrain, say: Callable[[str], None], count: Count
) -> Comparison:
    config = built.config
    job = Job(
        built.problem,
        built.rule,
        built.settings,
        config.estimator,
        config.compare,
        ranks,
        config.greedy.discount,
        Consistency(config.consistency.mode, config.consistency.every),
        config.outer.average,
        config.outer.judge_seeds,
    )
    return compare_methods(job, folder, say, retrain, count)


def _mirrored(config: Config, comparison: Comparison, folder: Path, say: Callable[[str], None]) -> None:
    """Sends the comparison to W&B where the config asks for it; what goes wrong there is a note."""
    session = wandb_session(config, "compare", folder.name)
    session.tell = say
    try:
        log_comparison(session, comparison, folder, config.resolved())
    except Exception as error:
        say(f"note: W&B failed: {' '.join(str(error).split()) or type(error).__name__}")


def _say_nothing(line: str) -> None:
    """Prints nothing: for a comparison without progress."""
