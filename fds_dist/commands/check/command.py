"""`fds-dist check`: the plan, its cost, and the resolved config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from rich.console import Console
from torch import nn

from fds_dist.build import Build, ModelBuilder, build, settled
from fds_dist.commands.check.cost import CostReport, cost_report
from fds_dist.commands.check.plan_text import print_plan
from fds_dist.commands.inputs import Source, draft_of
from fds_dist.commands.meeting import agreed_draft
from fds_dist.common.console import as_html, default_console, paragraph
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.words import counted
from fds_dist.config import Config, dump_config
from fds_dist.distributed.agreement import on_all_ranks
from fds_dist.distributed.arithmetic import arithmetic_restored
from fds_dist.distributed.devices import reproducible_threads
from fds_dist.inner.problem import Problem
from fds_dist.tasks.base import Task


class CheckResult(NamedTuple):
    """The result of `check`."""

    built: Build
    """The config, and the objects made from it."""
    report: CostReport
    """The plan and its cost."""

    def _repr_html_(self) -> str:
        built, report = self
        return as_html(partial(print_plan, built.problem, report, built.remarks))


def check(
    config: Source | None,
    overrides: Sequence[str] = (),
    *,
    world_size: int | None = None,
    task: Task | None = None,
    model: nn.Module | ModelBuilder | None = None,
) -> CheckResult:
    """Checks the input of `optimize`, and predicts what the search would do and cost. Trains nothing.

    Args:
        config: a YAML file, or the config as a mapping.
        overrides: `key.sub=value` strings.
        world_size: the number of ranks to plan for; None: the ranks of this launch.
        task: an object used in place of the config's task.
        model: a module or a function from a seed to one, used in place of the config's model.

    Returns:
        What was built from the config, and the plan with time and memory per rank; `built, report = check(...)`.

    Raises:
        UserError: the input is wrong.

    Example:
        >>> hyperparameters = {"lr": {"init": 0.1, "step": 0.05, "buckets": 4}}
        >>> config = {"task": {"name": "digits"}, "model": {"name": "mlp"}, "hyperparameters": hyperparameters}
        >>> result = fds_dist.check(config, world_size=2)
        >>> [rank.elements for rank in result.report.ranks]
        [(0, 3), (1, 2)]
    """
    if world_size is not None and world_size < 1:
        raise UserError(Fault("--world-size", f"{world_size} is out of range", "a whole number of at least 1"))
    drafted = agreed_draft("check", lambda: draft_of(config, overrides, None, task), config)
    with drafted as (environment, draft), arithmetic_restored():
        planned = environment if world_size is None else replace(environment, rank=0, world_size=world_size)
        built = on_all_ranks(environment, lambda: build(draft, planned, task, model))
        with reproducible_threads(built.problem.device):
            built = settled(built, built.ranks(environment))
            config = built.config
            count = config.random_directions.count
            report = cost_report(built.problem, built.settings, built.shape, config.estimator, count)
    return CheckResult(built, report)


def print_check(
    config: Config, problem: Problem, report: CostReport, remarks: Sequence[str] = (), console: Console | None = None
) -> None:
    """Prints which rank owns which tangents, the cost of each rank's share, and the resolved config."""
    console, outer = console or default_console(), config.outer
    print_plan(problem, report, remarks, console)
    if outer.judge_seeds:
        most, seeds = 3 + (outer.average > 1), counted(outer.judge_seeds, "fresh seed")
        runs = counted(most * outer.judge_seeds, "plain run")
        paragraph(console, f"Then up to {runs} judge the result: up to {most} candidates on {seeds}.")
    console.print()
    paragraph(console, "[bold]Config[/bold]  with every default:")
    console.print()
    width = console.width - 25  # YAML breaks a line only after the item that crosses the width
    console.print(dump_config(config, min(110, width), secrets=False).rstrip(), markup=False, soft_wrap=True)
