"""`fds-dist noise`: measures hypergradient noise against window size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from fds_dist.build import ModelBuilder
from fds_dist.commands.inputs import Source, folder_key, launched, one_run_per_rank, study_folder
from fds_dist.commands.noise.measure import cosine_schedule, measure_noise
from fds_dist.commands.noise.plot import plot_noise
from fds_dist.commands.noise.report import NoiseReport, print_noise, write_noise
from fds_dist.common.console import as_html, counting
from fds_dist.storage.lock import locked
from fds_dist.tasks.base import Task

NOISE_STEPS = 250
NOISE_RUNS = 100


@dataclass(frozen=True)
class NoiseResult:
    """The result of `noise`, the same on every rank."""

    report: NoiseReport
    folder: Path
    """Holds `noise.json`, the figures, and `runs/` with a file for each run."""

    def _repr_html_(self) -> str:
        return as_html(partial(print_noise, self.report))


def noise(
    config: Source | None,
    overrides: Sequence[str] = (),
    *,
    runs: int = NOISE_RUNS,
    steps: int = NOISE_STEPS,
    task: Task | None = None,
    model: nn.Module | ModelBuilder | None = None,
    progress: bool = True,
) -> NoiseResult:
    """Measures hypergradient noise against window size, at the paper's cosine schedule.

    Called again with the same config, it computes only the runs that are not in the folder yet.

    Args:
        config: a YAML file, or the config as a mapping.
        overrides: `key.sub=value` strings.
        runs: the number of inner runs, at least 4.
        steps: the inner steps of each run, at least 2.
        task: an object used in place of the config's task.
        model: a module or a function from a seed to one, used in place of the config's model.
        progress: whether rank 0 prints how many runs are done.

    Returns:
        The noise of every analyzed hyperparameter, the recommended numbers of buckets, and the folder with the figures.

    Raises:
        UserError: the input is wrong, or fewer than 4 runs have finite hypergradients.

    Example:
        >>> learned = {"lr": {"init": 0.1, "step": 0.05}}
        >>> config = {"task": {"name": "digits"}, "model": {"name": "mlp"}, "hyperparameters": learned}
        >>> list(fds_dist.noise(config, runs=4, steps=6, progress=False).report.recommended_buckets)
        ['lr']
    """
    with launched(config, overrides, prepare=one_run_per_rank, task=task, model=model, command="noise") as (
        built,
        ranks,
    ):
        folder = study_folder(built.config, "noise")
        schedule = cosine_schedule(built.problem, steps)
        with locked(folder, "fds-dist noise", folder_key(built.config), ranks):
            with counting("noise", "runs", show=progress and ranks.is_first) as count:
                report = measure_noise(built.problem, schedule, steps, runs, ranks, folder, count)
            ranks.on_first(partial(write_noise, report, folder / "noise.json"))
            ranks.on_first(partial(plot_noise, report, folder / "noise"))
    return NoiseResult(report, folder)
