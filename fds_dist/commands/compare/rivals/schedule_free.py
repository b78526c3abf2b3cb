"""Schedule-free SGD and AdamW of the package schedulefree, tuned over the learning rate, warm-up and the rest.

Source: Defazio et al., "The road less scheduled", arXiv 2405.15682. Gradients are taken at y, an interpolation between
the iterate z and its average x; x is what is validated.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fds_dist.commands.compare.job import Job
from fds_dist.commands.compare.rivals.curves import decay_faults, named_numbers
from fds_dist.commands.compare.rivals.recipe import Setting, constants, shared_ranges
from fds_dist.commands.compare.space import SearchRange, warmup_range
from fds_dist.common.faults import Fault
from fds_dist.common.optimizers import BUILT_IN
from fds_dist.common.values import Value
from fds_dist.inner.problem import Problem
from fds_dist.schedule.groups import base_of
from fds_dist.schedule.shapes import DEFAULT
from fds_dist.schedule.space import HyperparameterSpace
from fds_dist.tangents.optimizers import PerWeight, same_for_all
from fds_dist.tangents.optimizers.schedule_free import ScheduleFree as InnerScheduleFree

CLASSES = {
    "sgd": "SGDScheduleFree",
    "adamw": "AdamWScheduleFree",
    **{name: facts.package_class for name, facts in BUILT_IN.items() if facts.package_class},
}
"""Inner optimizer → the class of the package that takes its place."""

INTERPOLATION = {"SGDScheduleFree": "momentum", "AdamWScheduleFree": "beta1"}
"""Class of the package → the hyperparameter under whose name it has the interpolation between z and x."""

INTERPOLATION_RANGE = (0.5, 0.99)
"""Around the package's default of .9, in place of the range of a momentum."""

USUAL_INTERPOLATION = 0.9

FASTER = {"sgd": 10.0}
"""Inner optimizer → factor of the highest learning rate. Schedule-free SGD takes rates 10 to 50 times as high as SGD
with momentum does, says the package, as its momentum multiplies no step."""


@dataclass(frozen=True)
class ScheduleFree:
    """A constant learning rate after a warm-up, with averaging in place of a decay.

    Its numbers are the warm-up's share of the horizon and one for each learned hyperparameter. What the config fixes
    stays fixed, but for the interpolation where the inner optimizer is not schedule-free itself.
    """

    name: str = "schedule_free"

    def faults(self, job: Job) -> Iterator[Fault]:
        """See `Recipe`."""
        yield from decay_faults(self.name, job.problem.space)
        if importlib.util.find_spec("schedulefree") is None:
            problem = f"{self.name} needs the package schedulefree, which is not installed"
            yield Fault("compare.methods", problem, "pip install 'fds-dist[schedulefree]'")
        yield from (
            Fault("compare.methods", f"{self.name} {reason}", f"methods without {self.name}{way_out}")
            for applies, reason, way_out in _limits(job)
            if applies
        )

    def ranges(self, job: Job) -> dict[str, SearchRange]:
        """See `Recipe`."""
        shared, optimizer = shared_ranges(job.ranges), job.problem.optimizer.name
        lr, interpolation = shared["lr"], INTERPOLATION[CLASSES[optimizer]]
        shared["lr"] = replace(lr, high=lr.high * FASTER.get(optimizer, 1.0))
        if interpolation in shared:
            low, high = INTERPOLATION_RANGE
            shared[interpolation] = replace(shared[interpolation], low=low, high=high)
        return {"warmup": warmup_range(job.options), **shared}

    def setting(self, problem: Problem, horizon: int, numbers: Sequence[float]) -> Setting:
        """See `Recipe`."""
        space, warmup = problem.space, round(numbers[0] * horizon)
        by_base = dict(zip(dict.fromkeys(owner.base for owner in space.learned), numbers[1:], strict=True))
        used, defaults = problem.optimizer, problem.optimizer.defaults
        is_free, package_class = isinstance(used, InnerScheduleFree), CLASSES[used.name]
        usual = {} if is_free else {INTERPOLATION[package_class]: USUAL_INTERPOLATION}
        values = {**defaults, **space.fixed, **usual, **by_base}
        settings = {**{key: values[key] for key in defaults}, **(used.switches if is_free else {})}
        optimizer = PackageOptimizer(package_class, settings, warmup)
        of_loss = [owner for owner in space.learned if owner.base not in defaults]
        rest = HyperparameterSpace(
            tuple(replace(owner, buckets=1, shape=DEFAULT) for owner in of_loss),
            {key: value for key, value in space.fixed.items() if base_of(key) not in defaults},
        )
        numbers = [number for owner in of_loss for number in constants(space, by_base)[owner.name]]
        return Setting(replace(problem, optimizer=optimizer, space=rest), numbers)

    def named(self, problem: Problem, numbers: Sequence[float]) -> dict[str, list[Value]]:
        """See `Recipe`."""
        return named_numbers(problem, numbers)


def _limits(job: Job) -> Iterator[tuple[bool, str, str]]:
    """(whether it is in the way, what it is, what else would help)."""
    problem = job.problem
    yield problem.optimizer.name not in CLASSES, f"has no {problem.optimizer.name}", f", or {' or '.join(CLASSES)}"
    yield bool(problem.groups), "knows no parameter groups", ", or no inner.groups"
    yield problem.ema is not None, "has an average of the weights, and inner.ema is another one", ", or inner.ema=null"
    yield job.options.retrain_seeds > 0, "has no schedule to retrain with", ", or compare.retrain_seeds=0"
    averaged = any(
        isinstance(part, _NormBase) and part.running_mean is not None for part in problem.module(0).modules()
    )
    yield averaged, "would need the running statistics of batch-norm anew at the averaged weights", ""


class PackageState(NamedTuple):
    """What an optimizer of the package keeps between two steps."""

    average: Tensor
    """[D] x."""
    vectors: dict[str, Tensor]
    """[D] each: z, and with AdamW the second moment."""
    counts: Tensor
    """[3] in float64 on the CPU: steps taken, sum of the weights of the average, highest learning rate so far."""


COUNTS = ("k", "weight_sum", "lr_max")
"""The package's names of `PackageState.counts`."""


@dataclass(frozen=True)
class PackageOptimizer:
    """An optimizer of the package as an inner optimizer for runs without tangents."""

    package_class: str
    settings: Mapping[str, Any]
    """Its hyperparameters by the names of `torch.optim`'s SGD and AdamW here: `beta1` and `beta2` apart."""
    warmup_steps: int
    defaults: Mapping[str, float] = field(default_factory=dict)
    """No value comes from a schedule."""

    @property
    def name(self) -> str:
        """The class in the package."""
        return f"schedulefree:{self.package_class}"

    @property
    def switches(self) -> dict[str, object]:
        """Its settings."""
        return {**self.settings, "warmup_steps": self.warmup_steps}

    def init(self, weights: Tensor) -> PackageState:
        """See `InnerOptimizer`."""
        return PackageState(weights, {}, torch.tensor([0.0, 0.0, -1.0], dtype=torch.float64))

    def judged(self, weights: Tensor, state: PackageState) -> Tensor:
        """See `InnerOptimizer`."""
        return state.average

    def update(
        self,
        weights: Tensor,
        state: PackageState,
        gradient: Tensor,
        h: Mapping[str, Tensor],
        per_weight: PerWeight = same_for_all,
    ) -> tuple[Tensor, PackageState]:
        """See `InnerOptimizer`; `weights` is y."""
        y = nn.Parameter(weights.clone())  # which the package overwrites, as it does the gradient
        y.grad = gradient.clone()
        optimizer = self._made(y)
        optimizer.state[y].update(state.vectors)
        group = optimizer.param_groups[0]
        steps, *others = state.counts.tolist()
        group.update(zip(COUNTS, (int(steps), *others), strict=True), train_mode=True)
        optimizer.step()
        counts = torch.tensor([float(group[name]) for name in COUNTS], dtype=torch.float64)
        after = y.detach().clone()
        vectors = dict(optimizer.state[y])
        optimizer.eval()  # takes y to x
        return after, PackageState(y.detach(), vectors, counts)

    def _made(self, parameter: nn.Parameter) -> Any:
        settings: dict[str, Any] = dict(self.settings)
        if "beta1" in settings:
            settings["betas"] = settings.pop("beta1"), settings.pop("beta2")
        make = getattr(importlib.import_module("schedulefree"), self.package_class)
        return make([parameter], warmup_steps=self.warmup_steps, **settings)
