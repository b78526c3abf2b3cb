"""A number is right, or the run is refused before it trains: kinds of networks, losses and habits of users.

`right` kinds: forward and reverse hypergradients equal central differences of a plain `torch.optim` loop, written here
and sharing nothing with the package. `refused` kinds: one line names the cause.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from problems import HalfTanh
from torch import Tensor, nn
from torch.nn import functional as F

import fds_dist

STEPS, SAMPLES, FEATURES, CLASSES = 6, 8, 5, 3
LR, MOMENTUM = 0.3, 0.9
DIFFERENCES = 1e-6
"""Relative: central differences at 1e-6 of the learning rate in float64 are right to about 1e-8 on smooth networks."""

Batch = tuple[Tensor, Tensor]


def batches(count: int, seed: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(SAMPLES, FEATURES, generator=generator, dtype=torch.float64),
            torch.randint(CLASSES, (SAMPLES,), generator=generator),
        )
        for _ in range(count)
    ]


TRAIN, VAL = batches(STEPS, 0), batches(1, 1)


class Batches:
    """A task over fixed batches."""

    steps_per_epoch = STEPS

    def __init__(self, loss: Callable[..., Tensor] = F.cross_entropy) -> None:
        self.loss = loss

    def train_batches(self, outer_step: int, epoch: int) -> Iterator[Batch]:
        return iter(TRAIN)

    def val_batches(self, outer_step: int) -> Iterator[Batch]:
        return iter(VAL)

    def test_batches(self) -> Iterator[Batch]:
        return iter(VAL)


def plain_loss(build: Callable[[], nn.Module], loss: Callable[..., Tensor], rates: list[float], running: bool) -> float:
    """The validation loss of a plain PyTorch loop with two learning rates, one for each half."""
    module = build().double().train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=MOMENTUM)
    for step, (x, y) in enumerate(TRAIN):
        optimizer.param_groups[0]["lr"] = rates[2 * step // STEPS]
        optimizer.zero_grad()
        loss(module(x), y).backward()
        optimizer.step()
    # A frozen batch-norm, which its owner keeps in evaluation mode, validates as it trains.
    on_batch = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm1d) and layer.training]
    module.eval()
    for layer in [] if running else on_batch:
        layer.train()
    (x, y) = VAL[0]
    with torch.no_grad():
        return loss(module(x), y).item()


def differences(build: Callable[[], nn.Module], loss: Callable[..., Tensor], running: bool) -> list[float]:
    h = 1e-6 * LR
    return [
        (
            plain_loss(build, loss, [LR + h * (bucket == half) for half in (0, 1)], running)
            - plain_loss(build, loss, [LR - h * (bucket == half) for half in (0, 1)], running)
        )
        / (2 * h)
        for bucket in (0, 1)
    ]


def config(estimator: str, running: bool = False, **sections: Any) -> dict[str, Any]:
    return {
        "inner": {"epochs": 1},
        "hyperparameters": {"lr": {"init": LR, "buckets": 2, "step": 0.1}, "momentum": MOMENTUM},
        "outer": {"optimizer": "sign", "steps": 1, "val_batch_norm": "running" if running else "batch"},
        "estimator": estimator,
        "dtype": "float64",
        **sections,
    }


def optimized(kind: Kind, estimator: str, **sections: Any) -> fds_dist.RunResult:
    build = kind.build
    return fds_dist.optimize(
        config(estimator, kind.running, **sections), task=Batches(kind.loss), model=lambda seed: build(), progress=False
    )


@dataclass(frozen=True)
class Kind:
    network: Callable[[], nn.Module]
    loss: Callable[..., Tensor] = F.cross_entropy
    running: bool = False

    def build(self) -> nn.Module:
        torch.manual_seed(1)
        return self.network()


def with_middle(*middle: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """A small smooth network whose first layer is followed by `middle`."""
    return lambda: nn.Sequential(nn.Linear(FEATURES, 6), *(part() for part in middle), nn.Tanh(), nn.Linear(6, CLASSES))


class RunningMean(nn.Module):
    """A buffer that follows the batches and is subtracted in training too."""

    def __init__(self, hidden: bool) -> None:
        super().__init__()
        self.hidden = hidden
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.hidden:
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0).detach()
        elif self.training:
            with torch.no_grad():
                self.mean.mul_(0.9).add_(x.mean(0), alpha=0.1)
        return x - self.mean


class Unused(nn.Module):
    """A head that takes no part, which weight decay must not touch."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(FEATURES, CLASSES), nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x).tanh()


class FrozenNorm(nn.Sequential):
    """Keeps its batch-norm in evaluation mode by a `train` of its own."""

    def train(self, mode: bool = True) -> FrozenNorm:
        super().train(mode)
        self[1].eval()
        return self


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES)
        self.again.weight = self.first.weight
        self.last = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.again(self.first(x).tanh()).tanh())


class NormAndActivation(nn.BatchNorm1d):
    """Calls the functional batch-norm itself, as layers that normalize and activate do."""

    def forward(self, input: Tensor) -> Tensor:
        statistics: tuple[Tensor | None, Tensor | None] = (self.running_mean, self.running_var)
        if self.training and self.track_running_stats:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
        elif self.training:
            statistics = None, None
        rest = (self.weight, self.bias, self.training, self.momentum or 0.0, self.eps)
        return F.batch_norm(input, *statistics, *rest).tanh()


class LazyTable(nn.Module):
    """A buffer that the first call fills, at its full size."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        if len(self.table) != x.shape[1]:
            self.table = torch.arange(1.0, 1 + x.shape[1], dtype=x.dtype)
        return x * self.table


class ZeroBranch(nn.Module):
    """A residual branch that starts as zeros: the ReLU behind it stands at its kink."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(6, 6, bias=False), nn.BatchNorm1d(6)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = x.relu()
        return (x + self.norm(self.linear(x))).relu()


RIGHT = {
    "plain": Kind(with_middle()),
    "batch_norm": Kind(with_middle(lambda: nn.BatchNorm1d(6))),
    "batch_norm_running": Kind(with_middle(lambda: nn.BatchNorm1d(6)), running=True),
    "batch_norm_cumulative": Kind(with_middle(lambda: nn.BatchNorm1d(6, momentum=None)), running=True),
    "norm_and_activation": Kind(with_middle(lambda: NormAndActivation(6))),
    "norm_and_activation_running": Kind(with_middle(lambda: NormAndActivation(6)), running=True),
    "lazy_table": Kind(with_middle(LazyTable)),
    "zero_branch_running": Kind(with_middle(ZeroBranch, lambda: nn.BatchNorm1d(6)), running=True),
    "weight_norm": Kind(with_middle(lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)))),
    "unused_head": Kind(Unused),
    "tied": Kind(Tied),
    "frozen_norm": Kind(
        lambda: FrozenNorm(nn.Linear(FEATURES, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, CLASSES))
    ),
    "sum_loss": Kind(with_middle(), partial(F.cross_entropy, reduction="sum")),
}
"""Right by both estimators."""
BY_FORWARD = {
    "spectral_norm": Kind(with_middle(lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6)))),
    "running_mean": Kind(with_middle(lambda: RunningMean(hidden=False))),
    "spectral_norm_hook": Kind(with_middle(lambda: nn.utils.spectral_norm(nn.Linear(6, 6)))),
}
"""Right by forward mode, refused by reverse mode: their buffers change without a gradient."""


def error(kind: Kind, estimator: str) -> float:
    expected = differences(kind.build, kind.loss, kind.running)
    (record,) = optimized(kind, estimator).history
    found = record.hypergradients["lr"]
    assert record.val_loss == pytest.approx(plain_loss(kind.build, kind.loss, [LR, LR], kind.running), rel=1e-9)
    return float(np.linalg.norm(np.subtract(found, expected)) / np.linalg.norm(expected))


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("estimator", ["forward", "reverse"])
@pytest.mark.parametrize("name", RIGHT)
def test_hypergradients_are_those_of_a_plain_loop(name: str, estimator: str) -> None:
    assert error(RIGHT[name], estimator) < DIFFERENCES


@pytest.mark.parametrize("name", BY_FORWARD)
def test_buffers_that_reverse_mode_cannot_see_are_right_by_forward_mode_alone(name: str) -> None:
    assert error(BY_FORWARD[name], "forward") < DIFFERENCES
    with pytest.raises(fds_dist.UserError, match=r"depends on the weights, hidden from derivatives.*estimator=forward"):
        optimized(BY_FORWARD[name], "reverse")


class Through(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class OwnGenerator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator()
        self.generator.seed()

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rand(6, generator=self.generator, dtype=x.dtype)


class Aliased(nn.Module):
    """Reads a weight through a list that the registration does not know of."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.alias = [self.layer.weight]

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.alias[0].T + self.layer.bias


class Alternating(nn.Module):
    """Two branches, of which each call takes one."""

    def __init__(self) -> None:
        super().__init__()
        self.branches, self.calls = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)]), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.branches[self.calls % 2](x)


def hooked() -> nn.Module:
    layer = nn.Linear(6, 6)
    layer.weight.register_hook(lambda gradient: 0.5 * gradient)
    return layer


class Penalized:
    """A loss with a penalty on a network that the caller holds, of which a run has a copy."""

    def __init__(self) -> None:
        self.network = nn.Linear(2, 2).double()

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target) + 0.01 * self.network.weight.square().sum()


class Remembering:
    """A loss with a memory of its own."""

    def __init__(self) -> None:
        self.mean = 1.0

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        loss = F.cross_entropy(output, target)
        self.mean = 0.9 * self.mean + 0.1 * loss.item()
        return loss / self.mean


REFUSED = {
    "hidden_second_derivative": (
        Kind(with_middle(lambda: Through(HalfTanh.apply))),  # type: ignore[arg-type]
        r"second derivative of 1 \(Through\).* off by",
    ),
    "numpy_noise": (
        Kind(with_middle(lambda: Through(lambda x: x * torch.from_numpy(np.random.rand(6))))),
        r"1 \(Through\) gives another output at the same weights, inputs and seed",
    ),
    "python_noise": (
        Kind(with_middle(lambda: Through(lambda x: x * random.random()))),
        r"1 \(Through\) gives another output",
    ),
    "own_generator": (Kind(with_middle(OwnGenerator)), r"1 \(OwnGenerator\) gives another output"),
    "aliased_weight": (Kind(with_middle(Aliased)), r"the parameter 1\.layer\.weight is also held in 1\.alias"),
    "gradient_hook": (Kind(with_middle(hooked)), r"1\.weight.*hook|the gradient of 1\.weight is not"),
    "alternating_branches": (Kind(with_middle(Alternating)), r"takes part in some steps only|is not that of plain"),
    "hidden_buffer": (
        Kind(with_middle(lambda: RunningMean(hidden=True))),
        r"the buffer 1\.mean depends on the weights, hidden from derivatives",
    ),
    "penalty_on_the_callers_network": (
        Kind(with_middle(), Penalized()),
        r"task\.loss: loss\(output, target\) depends on a parameter \[2, 2\] beside the output",
    ),
    "remembering_loss": (Kind(with_middle(), Remembering()), "trains to other numbers from the same weights"),
}


@pytest.mark.parametrize("estimator", ["forward", "reverse"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_wrong_is_refused_with_its_cause(name: str, estimator: str) -> None:
    kind, cause = REFUSED[name]
    if (name, estimator) == ("hidden_second_derivative", "reverse"):
        cause = r"the hypergradient is off by .* by the second derivative of 1 \(Through\)"
    with pytest.raises(fds_dist.UserError) as caught:
        optimized(kind, estimator)
    assert re.search(cause, str(caught.value)), str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_the_record_says_what_was_compared_or_that_it_was_not(capsys: pytest.CaptureFixture[str]) -> None:
    kind = RIGHT["batch_norm"]
    for mode in ("on", "off"):
        fds_dist.optimize(
            config("forward", name=mode, consistency={"witness": mode}), task=Batches(), model=lambda seed: kind.build()
        )
        out = capsys.readouterr().out
        assert ("checked against plain PyTorch: 3 steps in float64" in out) == (mode == "on")
        assert ("consistency.witness is off" in out) == (mode == "off")


class CastingNorm(nn.Module):
    """Root-mean-square norm computed in float32 whatever comes in, as in many language models."""

    def forward(self, x: Tensor) -> Tensor:
        low = x.float()
        return (low * (low.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()).to(x.dtype)


FLOAT32_INSIDE = {
    "cast": (Kind(with_middle(CastingNorm)), r"computes in float32 at \S*test_witness\.py:\d+"),
    "class_weights": (
        Kind(with_middle(), nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5]))),
        r"computes in float32 \(PyTorch says: expected scalar type",
    ),
}


@pytest.mark.parametrize("name", FLOAT32_INSIDE)
def test_float32_inside_the_users_code_is_found_and_raised(name: str) -> None:
    kind, words = FLOAT32_INSIDE[name]
    settings: Any = {"task": Batches(kind.loss), "model": lambda seed: kind.build()}
    built, verification = fds_dist.verify(config("forward", dtype="float32"), **settings)
    assert verification.passed, verification
    assert built.problem.dtype == torch.float64
    assert re.search(words, f"computes in {verification.coarse}")
    assert re.search(words, built.remarks[-1])
