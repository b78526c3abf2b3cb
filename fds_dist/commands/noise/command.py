"""`fds-dist noise`: measures hypergradient noise against window size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fds_dist.build import build
from fds_dist.commands.inputs import Source, draft_of, one_run_per_rank, study_folder
from fds_dist.commands.noise.measure import cosine_schedule, measure_noise
from fds_dist.commands.noise.plot import plot_noise
from fds_dist.commands.noise.report import NoiseReport, write_noise
from fds_dist.common.console import counting
from fds_dist.distributed.agreement import on_all_ranks
from fds_dist.distributed.environment import read_environment

NOISE_STEPS = 250
NOISE_RUNS = 100


def noise(
    config: Source | None,
    overrides: Sequence[str] = (),
    *,
    runs: int = NOISE_RUNS,
    steps: int = NOISE_STEPS,
    show: bool = True,
) -> tuple[NoiseReport, Path]:
    """Measures hypergradient noise against window size at the paper's cosine schedule; returns its folder too.

    Args:
        show: whether rank 0 prints how many runs are done.

    Raises:
        UserError: the input is wrong.
    """
    environment = read_environment()
    built = on_all_ranks(environment, lambda: build(one_run_per_rank(draft_of(config, overrides)), environment))
    folder = study_folder(built.config, "noise")
    with built.ranks(environment) as ranks:
        folder.mkdir(parents=True, exist_ok=True)
        schedule = cosine_schedule(built.problem, steps)
        with counting("noise", "runs", show=show and ranks.is_first) as progress:
            report = measure_noise(built.problem, schedule, steps, runs, ranks, folder, progress)
        if ranks.is_first:
            write_noise(report, folder / "noise.json")
            plot_noise(report, folder / "noise")
    return report, folder
