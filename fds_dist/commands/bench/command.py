"""`fds-dist bench`: the cost figures of this machine."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from rich.console import Console
from torch import nn

from fds_dist.build import ModelBuilder, build
from fds_dist.commands.bench.figures import Ratios
from fds_dist.commands.bench.report import BenchReport
from fds_dist.commands.bench.steps import Clock, NetworkFigures, measure_network, rows
from fds_dist.commands.inputs import Source, draft_of, launched, one_run_per_rank
from fds_dist.common.console import counting
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.randomness import generator
from fds_dist.distributed.environment import LaunchEnvironment
from fds_dist.distributed.mesh import Ranks
from fds_dist.inner.measurement import measure_step
from fds_dist.inner.problem import Problem
from fds_dist.storage.provenance import environment_info
from fds_dist.tasks.base import Task
from fds_dist.tasks.in_memory import TensorTask

SECONDS = 60.0
SHARE_OF_STEPS = 0.7
"""Of the time, for what steps with k tangents cost; the rest is for the ratios."""

MakeProblem = Callable[[], Problem]

COMMON: dict[str, Any] = {
    "hyperparameters": {
        "lr": {"init": 0.05, "step": 0.1, "buckets": 5},
        "momentum": {"init": 0.5, "step": 0.1},
        "weight_decay": {"init": 1e-4, "step": 1e-4},
    },
}
BENCHED: dict[str, Any] = {**COMMON, "task": {"name": "digits", "batch_size": 64}, "model": {"name": "lenet"}}
"""The config that is measured where the user names none."""
LENET, MLP, WRN = "lenet", "mlp", "wrn-16-1"
IMAGES = 8 * 64
"""Random images of CIFAR-10's shape, for the network that has no data of that shape at hand."""


def run_bench(
    problem: Problem,
    ranks: Ranks,
    networks: Mapping[str, MakeProblem] | None = None,
    seconds: float = math.inf,
    progress: bool = False,
) -> BenchReport:
    """Measures everything on the first batches of `problem`. Called on all ranks; rank 0's times count.

    Args:
        networks: those whose steps with k tangents are measured, by name; `problem` alone by default.
        seconds: what does not fit into them is left out.
        progress: whether rank 0 shows on standard error how far it is.
    """
    clock = Clock.of(seconds)
    named = {"network": lambda: problem} if networks is None else networks
    figures = ranks.on_first(lambda: _measured_networks(named, clock.part(SHARE_OF_STEPS), progress))
    plain = ranks.on_first(lambda: measure_step(problem).plain_seconds)
    ratios = Ratios(problem, ranks, plain, clock)
    step_cost, scaling = ratios.speed()
    return BenchReport(
        step_cost=step_cost,
        vs_sequential=ratios.vs_sequential(),
        scaling_efficiency=scaling,
        precision_error=ratios.precision_errors(),
        memory_growth=ratios.memory_growth(),
        plain_seconds=plain,
        tangents=problem.space.size,
        horizon=ratios.horizon,
        method=problem.tangents.method,
        weights=problem.network(0).layout.size,
        world_size=ranks.world_size,
        device=_device_name(problem.device),
        torch_version=torch.__version__,
        versions=_versions(problem.device),
        networks=figures,
    )


def _measured_networks(named: Mapping[str, MakeProblem], clock: Clock, progress: bool) -> dict[str, NetworkFigures]:
    measured, done, total = {}, 0, 0
    with counting("bench", "figures", Console(stderr=True), show=progress) as report:

        def count() -> None:
            nonlocal done
            done += 1
            report(done, total)

        for left, (name, make) in zip(range(len(named), 0, -1), named.items(), strict=True):
            problem = make()
            total = done + left * len(list(rows(problem)))
            measured[name] = measure_network(problem, clock, count)
    return measured


def _versions(device: torch.device) -> dict[str, str | None]:
    info = environment_info(1, str(device))
    return {**{name: info[name] for name in ("fds_dist", "python", "torch")}, "cuda": torch.version.cuda}


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def built_in_networks(lenet: Problem, overrides: Sequence[str]) -> dict[str, MakeProblem]:
    """The networks that are measured where the user names none: an MLP and LeNet on digits, a WRN-16-1 on images."""

    def mlp() -> Problem:
        return _alone({**BENCHED, "model": {"name": MLP, "hidden": [64]}}, overrides)

    def wrn() -> Problem:
        random = generator("bench")
        images = torch.randn(IMAGES, 3, 32, 32, generator=random)
        labels = torch.randint(10, (IMAGES,), generator=random)
        task = TensorTask(images, labels, images[:64], labels[:64], batch_size=64, val_fraction=0.1)
        return _alone({**COMMON, "model": {"name": WRN}}, overrides, task)

    return {MLP: mlp, LENET: lambda: lenet, WRN: wrn}


def _alone(config: Mapping[str, Any], overrides: Sequence[str], task: Task | None = None) -> Problem:
    """The problem of a built-in config on this rank alone; its witness has testified in the project's tests."""
    config = {**config, "consistency": {"witness": "off"}}
    return build(draft_of(config, overrides, None, task), LaunchEnvironment(), task).problem


def bench(
    config: Source | None = None,
    overrides: Sequence[str] = (),
    *,
    seconds: float = SECONDS,
    task: Task | None = None,
    model: nn.Module | ModelBuilder | None = None,
    progress: bool = False,
) -> BenchReport:
    """Measures the cost model's figures on the ranks of this launch.

    Args:
        config: a YAML file, or the config as a mapping; None: an MLP and LeNet on digits, and a WRN-16-1.
        overrides: `key.sub=value` strings.
        seconds: about how long it may take; what does not fit is left out, the longest first.
        task: an object used in place of the config's task.
        model: a module or a function from a seed to one, used in place of the config's model.
        progress: whether rank 0 shows on standard error how far it is.

    Returns:
        Ratios that can be compared between machines, what a step with k tangents costs by each method, and what they
        were measured on.

    Raises:
        UserError: the input is wrong.

    Example:
        >>> overrides = ["model={name: mlp, hidden: [8]}", "task.batch_size=32"]
        >>> report = fds_dist.bench(overrides=overrides, seconds=1)
        >>> report.tangents, report.world_size
        (7, 1)
    """
    if not seconds > 0:
        raise UserError(Fault("--seconds", f"{seconds:g} is out of range", "a number above 0"))
    source = BENCHED if config is None else config
    with launched(source, overrides, prepare=one_run_per_rank, task=task, model=model, command="bench") as (
        built,
        ranks,
    ):
        is_told = not (config is None and task is None and model is None)
        names_one = is_told or any(override.startswith(("model", "task")) for override in overrides)
        name = (built.config.model.name if built.config.model else None) or "network"
        one = {name: lambda: built.problem}
        networks = one if names_one else built_in_networks(built.problem, overrides)
        return run_bench(built.problem, ranks, networks, seconds, progress)
