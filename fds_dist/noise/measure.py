"""The analysis: runs spread over the ranks, kept in files as they are done, and what they tell together.

Runs are independent: rank r does runs r, r + world size, ... without a word to the others until all are gathered.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch.distributed as dist

from fds_dist.distributed.mesh import Ranks
from fds_dist.engine.problem import Problem
from fds_dist.faults import Fault, UserError
from fds_dist.noise.estimates import FEWEST_RUNS, estimate_noise
from fds_dist.noise.report import NoiseReport
from fds_dist.noise.runs import ESTIMATORS, run_hypergradients, settings_key, without_sharing
from fds_dist.noise.theorem import Floats
from fds_dist.schedule import Schedule

Progress = Callable[[int, int], None]
"""(runs done, runs to do) of this rank."""


def measure_noise(
    problem: Problem,
    schedule: Schedule,
    horizon: int,
    runs: int,
    ranks: Ranks,
    folder: Path,
    progress: Progress = lambda done, total: None,
) -> NoiseReport:
    """Hypergradient noise of `problem` at `schedule`, stretched to `horizon` steps; the same on every rank.

    Args:
        runs: how many, at least 4; 100 in the paper.
        folder: keeps each run in `runs/` once it is done, so that an interrupted analysis goes on where it stopped, or
            a finished one with more runs. Runs of other settings may lie there too.

    Raises:
        UserError: too few runs, too few of them finite, or a schedule that does not fit the problem.
    """
    if runs < FEWEST_RUNS:
        raise UserError(Fault("runs", f"{runs} is out of range", f"a whole number of at least {FEWEST_RUNS}"))
    unshared = without_sharing(problem, schedule, horizon)
    kept, key = folder / "runs", settings_key(unshared)
    kept.mkdir(parents=True, exist_ok=True)
    mine = range(ranks.rank, runs, ranks.world_size)
    done: dict[int, Floats] = {}
    for number, run in enumerate(mine, start=1):
        file = kept / f"{key}-{run:04d}.npy"
        found = load_run(file)
        if found is None:
            found = run_hypergradients(unshared, run)
            save_run(file, found)
        done[run] = found
        progress(number, len(mine))
    finite = finite_runs(gather(done, ranks))
    space = unshared.problem.space
    return NoiseReport(
        horizon=horizon,
        runs=len(finite),
        left_out=runs - len(finite),
        schedule=space.unpack(unshared.values),
        fixed=dict(space.fixed),
        estimates=[
            estimate_noise(finite[:, column, row], owner.name, estimator)
            for row, owner in enumerate(space.learned)
            for column, estimator in enumerate(ESTIMATORS)
        ],
    )


def finite_runs(done: list[Floats]) -> Floats:
    """[R, E, N, T] the runs that did not diverge.

    Raises:
        UserError: they are too few.
    """
    finite = [found for found in done if np.isfinite(found).all()]
    if len(finite) < FEWEST_RUNS:
        problem = f"{len(finite)} of {len(done)} runs have finite hypergradients"
        remedy = "lower its learning rate or clip the gradient (inner.clip_gradient)"
        raise UserError(Fault("schedule", problem, f"at least {FEWEST_RUNS}; {remedy}"))
    return np.stack(finite)


def load_run(file: Path) -> Floats | None:
    """The hypergradients in `file`; None where there is no such file, or no array in it."""
    try:
        return np.load(file)
    except (OSError, ValueError, EOFError):
        return None


def save_run(file: Path, hypergradients: Floats) -> None:
    """Writes `file` so that it is there as a whole or not at all."""
    temporary = file.with_suffix(".tmp")
    with temporary.open("wb") as stream:
        np.save(stream, hypergradients)
    temporary.replace(file)


def gather(done: dict[int, Floats], ranks: Ranks) -> list[Floats]:
    """The runs of all ranks, in order, on every rank."""
    parts = [done] * ranks.world_size
    if ranks.world_size > 1:
        dist.all_gather_object(parts, done)
    return [parts[run % ranks.world_size][run] for run in range(sum(map(len, parts)))]
