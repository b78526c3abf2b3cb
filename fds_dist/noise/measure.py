"""The analysis: runs spread over the ranks, kept in files as they are done, and what they tell together.

Runs are independent: rank r does runs r, r + world size, ..., and hands each to the others when it is done.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from fds_dist.distributed.mesh import Ranks
from fds_dist.engine.problem import Problem
from fds_dist.faults import Fault, UserError
from fds_dist.noise.estimates import FEWEST_RUNS, estimate_noise
from fds_dist.noise.report import NoiseReport
from fds_dist.noise.runs import ESTIMATORS, Unshared, run_hypergradients, settings_key, without_sharing
from fds_dist.noise.theorem import Floats
from fds_dist.schedule import Schedule

Progress = Callable[[int, int], None]
"""(runs done, all runs), those of all ranks together."""


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
        UserError: too few steps or runs, too few of them finite, or a schedule that does not fit the problem.
    """
    checks = (("horizon", horizon, 2), ("runs", runs, FEWEST_RUNS))
    faults = [
        Fault(name, f"{value} is out of range", f"a whole number of at least {least}")
        for name, value, least in checks
        if value < least
    ]
    if faults:
        raise UserError(faults)
    unshared = without_sharing(problem, schedule, horizon)
    kept, key = folder / "runs", settings_key(unshared)
    kept.mkdir(parents=True, exist_ok=True)
    done: list[Floats] = []
    for first in range(0, runs, ranks.world_size):
        run = first + ranks.rank
        done += gather(kept_run(unshared, run, kept / f"{key}-{run:04d}.npy") if run < runs else None, ranks)
        progress(len(done), runs)
    finite = finite_runs(done)
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


def kept_run(unshared: Unshared, run: int, file: Path) -> Floats:
    """[E, N, T] of one run: read from `file`, or computed and written to it."""
    try:
        return np.load(file)
    except (OSError, ValueError, EOFError):  # no such file, or no array in it
        found = run_hypergradients(unshared, run)
        temporary = file.with_suffix(".tmp")
        with temporary.open("wb") as stream:
            np.save(stream, found)
        temporary.replace(file)  # there as a whole or not at all
        return found


def gather(run: Floats | None, ranks: Ranks) -> list[Floats]:
    """The runs of all ranks that have one, in the ranks' order, on every rank."""
    return [part for part in ranks.gather_objects(run) if part is not None]
