"""`fds-dist compare`: FDS and its rivals over one config."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fds_dist.build import Build, build, model_builder
from fds_dist.commands.compare.comparison import compare as compare_methods
from fds_dist.commands.compare.plot import plot_comparison
from fds_dist.commands.compare.results import Comparison
from fds_dist.commands.inputs import Source, draft_of, one_run_per_rank, study_folder, task_maker
from fds_dist.commands.retrain.settings import read_settings
from fds_dist.commands.retrain.trainer import retrain as retrain_seeds
from fds_dist.distributed.agreement import on_all_ranks
from fds_dist.distributed.environment import read_environment
from fds_dist.distributed.mesh import Ranks
from fds_dist.inner.monitor import Consistency
from fds_dist.schedule.schedule import Schedule


def compare(config: Source | None, overrides: Sequence[str] = ()) -> tuple[Comparison, Path]:
    """Runs FDS and its rivals at equal compute; returns its folder too. A second call goes on where one stopped.

    Raises:
        UserError: the input is wrong, or the folder holds a comparison of something else.
    """
    environment = read_environment()
    built = on_all_ranks(environment, lambda: build(one_run_per_rank(draft_of(config, overrides)), environment))
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
        results = retrain_seeds(task_maker(config), build_model, schedule, settings, ranks, target)
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
