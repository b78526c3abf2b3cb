"""A schedule that follows from the gradient norms of one run: refinement of a linear decay.

Source: Defazio, Cutkosky, Mehta and Mishchenko, "When, why and how much? Adaptive learning rate scheduling by
refinement", arXiv 2310.07831, algorithm 1.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fds_dist.commands.compare.job import Job, Report, Trial
from fds_dist.commands.compare.rivals.black_box import check_memory, explore, optuna_faults
from fds_dist.commands.compare.rivals.curves import Curve, decay_faults, named_numbers, scaled
from fds_dist.commands.compare.rivals.recipe import Recipe, Setting
from fds_dist.commands.compare.rivals.study import Kind
from fds_dist.commands.compare.space import SearchRange
from fds_dist.common.faults import Fault
from fds_dist.common.flat import FlatLayout
from fds_dist.common.records import Finite, from_values
from fds_dist.common.values import Value
from fds_dist.inner.plain_run import plain_run
from fds_dist.inner.problem import Problem
from fds_dist.tangents.optimizers import Around, PerWeight, bound, same_for_all

SMOOTHING = 0.1
"""The width of the median filter, as a share of the horizon: the paper's τ."""

NORMS = {"sgd": (2, -2), "adam": (1, -1), "adamw": (1, -1)}
"""Inner optimizer → the order of the gradient's norm, and its power in the weight of a step."""

SMALLEST = 1e-6
"""Norms below this share of the largest count as that: a step without a gradient would take all the weight."""

BASE = Curve("linear")


@dataclass(frozen=True)
class Refined:
    """A linear decay, tuned with half of the budget; then the schedule refined from its best run, tuned with the rest.

    Both phases are one search of the same numbers. In the second the warm-up's share has no effect: the refined
    schedule has a warm-up of its own. The schedule is refined once: a larger budget goes on with it.
    """

    name: str = "refined"
    label: str = "tuned refined schedule"

    def faults(self, job: Job) -> Iterator[Fault]:
        """See `Rival`."""
        yield from optuna_faults(self.name)
        yield from decay_faults(self.name, job.problem.space)
        if job.problem.optimizer.name not in NORMS:
            problem = f"{self.name} has no rule for {job.problem.optimizer.name}"
            yield Fault("compare.methods", problem, f"methods without {self.name}, or one of {', '.join(NORMS)}")
        if job.horizon < 2:
            yield Fault("compare.methods", f"{self.name} has no schedule of one step", "a longer horizon")

    def check(self, job: Job, trial: Trial) -> None:
        """See `Rival`."""
        check_memory(trial)
        factors = from_values(_Factors, trial.state).factors
        if factors and len(factors) != job.horizon:
            raise ValueError(f"{len(factors)} factors for {job.horizon} steps")

    def search(self, job: Job, before: Sequence[Trial], report: Report) -> str:
        """See `Rival`."""
        trials, kind = list(before), Kind(guided=True)

        def collect(batch: list[Trial]) -> None:
            trials.extend(batch)
            report(batch)

        if _measured(trials) is None:
            explore(self.name, kind, BASE, job, max(job.horizon, job.budget / 2), before, collect)
            whole = [trial for trial in trials if trial.steps == job.horizon and math.isfinite(trial.val_loss)]
            if not whole:
                return "no run with a linear decay ended with a finite loss"
            if job.budget - sum(trial.cost for trial in trials) < job.horizon:
                return "the budget is spent before a schedule can be refined"
            best = min(whole, key=lambda trial: trial.val_loss)
            collect(job.ranks.on_first(lambda: [measuring_run(job, best, len(trials))]))
        refined = _refined(trials)
        if refined is None:
            return "the run whose gradient norms were to be recorded diverged"
        explore(self.name, kind, refined, job, job.budget, tuple(trials), collect)
        return ""

    def recipe(self, job: Job, trials: Sequence[Trial], trial: Trial) -> Recipe:
        """See `Rival`."""
        measured, refined = _measured(trials), _refined(trials)
        return refined if measured and refined and trial.number > measured.number else BASE


@dataclass(frozen=True)
class Shape:
    """A learning rate of these `factors` [T] times its peak, and constants for the rest."""

    factors: tuple[float, ...]

    @property
    def name(self) -> str:
        """Other factors have another name."""
        return f"refined-{hashlib.sha256(repr(self.factors).encode()).hexdigest()[:12]}"

    def faults(self, job: Job) -> Iterator[Fault]:
        """See `Recipe`."""
        return BASE.faults(job)

    def ranges(self, job: Job) -> Mapping[str, SearchRange]:
        """See `Recipe`."""
        return BASE.ranges(job)

    def setting(self, problem: Problem, horizon: int, numbers: Sequence[float]) -> Setting:
        """See `Recipe`."""
        return scaled(problem, self.factors, numbers[1:])

    def named(self, problem: Problem, numbers: Sequence[float]) -> dict[str, list[Value]]:
        """See `Recipe`."""
        named = named_numbers(problem, numbers)
        del named["warmup"]
        return named


@dataclass(frozen=True)
class _Factors:
    """The part of a trial's `state` that only the trial has whose gradient norms were recorded."""

    factors: list[Finite] = field(default_factory=list)


def _measured(trials: Sequence[Trial]) -> Trial | None:
    """The trial whose gradient norms were recorded; its factors are empty if it diverged."""
    return next((trial for trial in trials if "factors" in trial.state), None)


def _refined(trials: Sequence[Trial]) -> Shape | None:
    measured = _measured(trials)
    return Shape(tuple(measured.state["factors"])) if measured and measured.state["factors"] else None


def measuring_run(job: Job, best: Trial, number: int) -> Trial:
    """The run of `best` once more, as trial `number`, with the refined schedule that follows from its gradients."""
    setting = BASE.setting(job.problem, job.horizon, best.values)
    order, power = NORMS[job.problem.optimizer.name]
    recorder = NormRecorder(setting.problem.optimizer, order)
    run = plain_run(replace(setting.problem, optimizer=recorder), setting.values, number, job.horizon)
    whole = run.steps == job.horizon and math.isfinite(run.val.loss)
    factors = refined_factors(torch.stack(recorder.norms).tolist(), power) if whole else []
    return replace(
        best,
        number=number,
        val_loss=run.val.loss,
        val_accuracy=run.val.accuracy,
        steps=run.steps,
        cost=float(run.steps),
        seconds=run.seconds,
        state={**best.state, "factors": factors},
    )


def refined_factors(norms: Sequence[float], power: int) -> list[float]:
    """The refined schedule [T] from the gradient norms [T] of a run, with 1 as its largest factor.

    w_t = ĝ_t^power, where ĝ is the running median of the norms over `SMOOTHING` of the horizon (repeated at the
    beginning, mirrored at the end); the factor of step t is proportional to w_t · Σ_{p>t} w_p. With equal norms it is
    the linear decay (T − 1 − t)/(T − 1), t from 0.
    """
    width = 2 * (int(SMOOTHING * len(norms)) // 2) + 1
    half = width // 2
    padded = np.pad(np.pad(np.asarray(norms, dtype=np.float64), (half, 0), mode="edge"), (0, half), mode="reflect")
    smooth = np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=1)
    weights = np.maximum(smooth, SMALLEST * smooth.max() or 1.0) ** power
    later = np.append(np.cumsum(weights[:0:-1])[::-1], 0.0)
    factors = weights * later
    return (factors / factors.max()).tolist()


@dataclass(frozen=True)
class NormRecorder(Around):
    """`optimizer`, which also records the norm of each gradient that it gets; for runs without tangents."""

    order: int
    norms: list[Tensor] = field(default_factory=list)
    """[] each, on the device."""

    def bind(self, layout: FlatLayout) -> NormRecorder:
        """See `InnerOptimizer`."""
        return replace(self, optimizer=bound(self.optimizer, layout))

    def init(self, weights: Tensor) -> Any:
        """See `InnerOptimizer`."""
        return self.optimizer.init(weights)

    def update(
        self,
        weights: Tensor,
        state: Any,
        gradient: Tensor,
        h: Mapping[str, Tensor],
        per_weight: PerWeight = same_for_all,
    ) -> tuple[Tensor, Any]:
        """See `InnerOptimizer`."""
        self.norms.append(torch.linalg.vector_norm(gradient, self.order))
        return self.optimizer.update(weights, state, gradient, h, per_weight)
