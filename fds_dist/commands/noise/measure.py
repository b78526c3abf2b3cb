"""Measures the per-step hypergradients of independent runs at one schedule, and estimates their noise.

The ranks share out the runs. Each run is written to a file when it is done.

Shapes: E = estimators (non-greedy, greedy), N = analyzed hyperparameters, T = steps of the horizon.

Run r is outer step r without sharing: its weights, validation split and batches differ from those of all other runs,
and every step has its own hyperparameters h_t. Then

    non-greedy_t = dL_val(w_T)/dh_t                    by one reverse sweep, about 4 plain runs whatever N·T is
    greedy_t     = ∇L_val(w_{t+1}) · ∂w_{t+1}/∂h_t     the state before step t held fixed; L_val on one batch

Greedy hypergradients take the validation batches in the task's order, again and again. Rank r computes the runs r,
r + world size, ... and sends each to the other ranks when it is done.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from fds_dist.commands.noise.estimates import FEWEST_RUNS, estimate_noise
from fds_dist.commands.noise.report import NoiseReport
from fds_dist.commands.noise.theorem import Floats
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.files import make_folder, write_atomic
from fds_dist.common.registry import nearest
from fds_dist.distributed.mesh import Ranks
from fds_dist.inner.estimators import Estimator, estimate_reverse
from fds_dist.inner.estimators.greedy import greedy_estimator
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerRun
from fds_dist.schedule.groups import base_of
from fds_dist.schedule.schedule import Schedule
from fds_dist.schedule.space import Hyperparameter, HyperparameterSpace

COSINE_LR = 0.01
MOMENTUM = 0.9

ESTIMATORS: dict[str, Estimator] = {"non-greedy": estimate_reverse, "greedy": greedy_estimator(0.0)}


@dataclass(frozen=True)
class Unshared:
    """A problem whose N learned hyperparameters have one bucket per step, with their values."""

    problem: Problem
    values: list[float]  # [N·T] λ
    horizon: int


def cosine_schedule(problem: Problem, horizon: int) -> Schedule:
    """The paper's schedule, the same in all parameter groups: `lr` falls from `COSINE_LR` to 0 along a cosine, and
    `momentum`, if the problem's optimizer has it, is always `MOMENTUM`."""
    rates = tuple(COSINE_LR * (1 + math.cos(math.pi * step / horizon)) / 2 for step in range(horizon))
    names = problem.space.names
    fixed = {name: MOMENTUM for name in names if base_of(name) == "momentum"}
    return Schedule(horizon, {name: rates for name in names if base_of(name) == "lr"}, fixed)


def without_sharing(problem: Problem, schedule: Schedule, horizon: int) -> Unshared:
    """`problem` with one bucket per step for every analyzed hyperparameter, over `horizon` steps.

    The analyzed hyperparameters are those that the problem learns and those that the schedule changes over time. A
    hyperparameter that the schedule does not name keeps the problem's initial or fixed value.

    Raises:
        UserError: the schedule names a hyperparameter that the problem does not have, or a value has several numbers.
    """
    names = problem.space.names
    if vectors := [owner for owner in problem.space.learned if owner.size > 1]:
        raise UserError(
            Fault(f"hyperparameters.{owner.name}.size", f"{owner.size}: noise is measured of single numbers", "1")
            for owner in vectors
        )
    steps = [schedule.stretch(horizon).at(step) for step in range(horizon)]
    if unknown := [name for name in steps[0] if name not in names]:
        expected = f"one of {', '.join(names)}"
        raise UserError(Fault(f"schedule: {name}", "unknown", expected, nearest(name, names)) for name in unknown)
    start = problem.space.schedule(problem.space.initial(), horizon)
    rows = {name: [step.get(name, start.at(index)[name]) for index, step in enumerate(steps)] for name in names}
    analyzed = [name for name in names if name in start.values or len(set(rows[name])) > 1]
    space = HyperparameterSpace(
        tuple(Hyperparameter(name, init=rows[name][0], step=0.0, buckets=horizon) for name in analyzed),
        {name: row[0] for name, row in rows.items() if name not in analyzed},
    )
    return Unshared(replace(problem, space=space), [value for name in analyzed for value in rows[name]], horizon)


def run_hypergradients(unshared: Unshared, run: int) -> Floats:
    """The hypergradients [E, N, T] of one run; not finite if the run diverges."""
    single = InnerRun(unshared.problem, unshared.values, run, unshared.horizon)  # other ranks have other runs
    estimates = [estimator(single).hypergradients for estimator in ESTIMATORS.values()]
    return np.array(estimates).reshape(len(estimates), -1, unshared.horizon)


def settings_key(unshared: Unshared) -> str:
    """A short hash of everything that a run's hypergradients depend on: settings, initial weights, first batches."""
    problem = unshared.problem
    settings = (
        problem.space.bucket_counts,
        problem.space.fixed,
        unshared.values,
        problem.optimizer_info,
        (problem.clip_gradient, problem.val_batch_norm, str(problem.dtype), problem.seed),
    )
    digest = hashlib.sha256(repr(settings).encode())
    val_batch = next(iter(problem.task.val_batches(0)), ())
    for part in (problem.network(0).initial_weights, *next(problem.batches(0)), *val_batch):
        digest.update(part.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


Progress = Callable[[int, int], None]
"""Called with (finished runs, all runs), summed over the ranks."""


def measure_noise(
    problem: Problem,
    schedule: Schedule,
    horizon: int,
    runs: int,
    ranks: Ranks,
    folder: Path,
    progress: Progress = lambda done, total: None,
) -> NoiseReport:
    """The hypergradient noise of `problem` at `schedule`, stretched to `horizon` steps; the same on every rank.

    Args:
        runs: number of runs, at least 4; 100 in the paper.
        folder: its `runs/` holds a file for each finished run. An interrupted analysis continues from them, and a
            finished one can be extended. Runs with other settings may be there too.

    Raises:
        UserError: there are too few steps, runs or finite runs, or the schedule does not fit the problem.
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
    finite = finite_runs(all_runs(unshared, runs, ranks, folder / "runs", progress))
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


def all_runs(unshared: Unshared, runs: int, ranks: Ranks, folder: Path, progress: Progress) -> list[Floats]:
    """The hypergradients [E, N, T] of every run, on every rank."""
    ranks.on_each(partial(make_folder, folder, parents=True))
    key = settings_key(unshared)
    done: list[Floats] = []
    for first in range(0, runs, ranks.world_size):
        run = first + ranks.rank
        stored = partial(stored_run, unshared, run, folder / f"{key}-{run:04d}.npy")
        done += gather(ranks.on_each(stored if run < runs else lambda: None), ranks)
        progress(len(done), runs)
    return done


def finite_runs(done: list[Floats]) -> Floats:
    """The runs that did not diverge, as one array [R, E, N, T].

    Raises:
        UserError: fewer than `FEWEST_RUNS` are left.
    """
    finite = [run for run in done if np.isfinite(run).all()]
    if len(finite) < FEWEST_RUNS:
        problem = f"{len(finite)} of {len(done)} runs have finite hypergradients"
        remedy = "lower its learning rate or clip the gradient (inner.clip_gradient)"
        raise UserError(Fault("schedule", problem, f"at least {FEWEST_RUNS}; {remedy}"))
    return np.stack(finite)


def stored_run(unshared: Unshared, run: int, file: Path) -> Floats:
    """The hypergradients [E, N, T] of one run, read from `file`, or computed and written to it."""
    try:
        return np.load(file)
    except (OSError, ValueError, EOFError):  # no such file, or no array in it
        hypergradients = run_hypergradients(unshared, run)
        content = io.BytesIO()
        np.save(content, hypergradients)
        write_atomic(file, content.getvalue())
        return hypergradients


def gather(run: Floats | None, ranks: Ranks) -> list[Floats]:
    """The runs of all ranks in the ranks' order, on every rank; None entries are left out."""
    return [part for part in ranks.gather_objects(run) if part is not None]
