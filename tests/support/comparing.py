"""Comparisons of a second: a small problem, the searches on it, and an interruption every so often."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from problems import ONE_RANK, image_task, make_problem, mlp
from torch import nn

from fds_dist.commands.compare.comparison import compare
from fds_dist.commands.compare.job import Job, Trial
from fds_dist.commands.compare.results import Comparison
from fds_dist.commands.compare.rivals.recipe import Setting
from fds_dist.common.records import RecordFile
from fds_dist.config.compare import CompareConfig
from fds_dist.inner.problem import Problem
from fds_dist.outer.progress import OuterSettings
from fds_dist.outer.rules import SignRule

HORIZON = 10
BUCKETS = {"lr": [0.01, 0.01], "momentum": [0.1]}


def seeded_builder(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed % 2**31)
        return build()


def small_problem(**options: Any) -> Problem:
    """Two epochs of 5 steps each make the horizon; the weights depend on the seed."""
    problem = make_problem(image_task(mlp), BUCKETS, **options)
    return replace(problem, build_model=partial(seeded_builder, mlp))


def comparison_job(problem: Problem, **options: Any) -> Job:
    """A job over the usual horizon; `options` are those of the section `compare`."""
    return Job(
        problem, SignRule(), OuterSettings((HORIZON,)), "forward", CompareConfig.model_validate(options), ONE_RANK
    )


def rates(setting: Setting, horizon: int, name: str = "lr") -> list[float]:
    """The values of a hyperparameter at each step, as the inner run reads them."""
    schedule = setting.schedule(horizon)
    return [schedule.at(step)[name] for step in range(horizon)]


def run(folder: Path, problem: Problem | None = None, steps: int = 2, **options: Any) -> Comparison:
    """A comparison with few seeds on a small problem; `options` are those of the config's section, but for a few."""
    passed = {name: options.pop(name) for name in ("say", "retrain", "count") if name in options}
    settings, estimator = OuterSettings((HORIZON,) * steps), options.pop("estimator", "forward")
    chosen = CompareConfig.model_validate({"seeds": 1, "judge_seeds": 1, **options})
    return compare(Job(problem or small_problem(), SignRule(), settings, estimator, chosen, ONE_RANK), folder, **passed)


def trials_of(folder: Path, method: str, repetition: int = 0) -> list[Trial]:
    return RecordFile(folder / method / f"trials-{repetition}.jsonl", Trial).read()


def comparable(result: Comparison) -> list[Any]:
    """All that a comparison says but times."""
    return [
        replace(each, seconds=0.0, incumbents=[replace(best, seconds=0.0) for best in each.incumbents])
        for each in result.runs
    ]


@dataclass
class Interrupting:
    """Builds models, and is interrupted every so often."""

    after: int
    left: int = 0

    def __call__(self, seed: int) -> nn.Module:
        if self.left == 0:
            self.left = self.after
            raise KeyboardInterrupt
        self.left -= 1
        return seeded_builder(mlp, seed)
