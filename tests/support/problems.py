"""Small inner problems for tests: tasks over fixed tensors, smooth networks, and `Problem` builders.

Networks are smooth (no ReLU, no max-pooling) where tests take finite differences: a kink between the two points of a
difference would be an error of the reference, not of what is tested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fds_dist.common import values as values_module
from fds_dist.common.randomness import generator
from fds_dist.common.values import size_of
from fds_dist.distributed.environment import LaunchEnvironment
from fds_dist.distributed.mesh import MeshShape, Ranks
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerState
from fds_dist.inner.tangent_options import TangentOptions
from fds_dist.schedule.space import Hyperparameter, HyperparameterSpace
from fds_dist.tangents.optimizers import SGD, InnerOptimizer
from fds_dist.tangents.step import Pruning
from fds_dist.tasks.base import Task

CPU = torch.device("cpu")
ONE_RANK = Ranks(LaunchEnvironment(), MeshShape(1, 1, 1), CPU)
CLASSES = 4

Buckets = Mapping[str, Sequence[Any]]
"""Values of the learned hyperparameters, one per bucket: a number, or a list of numbers."""


@dataclass
class TensorTask:
    """A task over fixed tensors: every epoch gives the same batches, every model starts from the same weights."""

    build: Callable[[], nn.Module]
    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]
    loss: Callable[..., Tensor] = F.cross_entropy
    val_loss: Callable[..., Tensor] | None = None
    batch_size: int = 8
    steps_per_epoch: int = field(init=False)

    def __post_init__(self) -> None:
        self.steps_per_epoch = len(self.train[0]) // self.batch_size

    def train_batches(self, outer_step: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(*(part.split(self.batch_size) for part in self.train), strict=True)

    def val_batches(self, outer_step: int) -> Iterator[tuple[Tensor, Tensor]]:
        return iter([self.val])

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter([self.val])

    def build_model(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed(0)
            return self.build()


class Ramp(nn.Module):
    """One weight w, which is the output whatever the input: with the mean output as the loss, a step
    takes lr off it."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.w * torch.ones(len(x), dtype=x.dtype)


def conv_bn() -> nn.Module:
    """Convolution, batch-norm and a smooth activation, twice, on images [B, 1, 6, 6]; 4 classes."""
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, bias=False),  # a bias before batch-norm has a gradient of pure rounding noise
        nn.BatchNorm2d(3),
        nn.Tanh(),
        nn.Conv2d(3, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.SiLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4, CLASSES),
    )


def one_conv_bn() -> nn.Module:
    """Half of `conv_bn`, whose steps and traces take half the time."""
    layers = (nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(8, CLASSES))


def mlp() -> nn.Module:
    """A tiny smooth network on images [B, 1, 6, 6]; 4 classes."""
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.Tanh(), nn.Linear(5, CLASSES))


class Peculiar(nn.Module):
    """Weights that do not divide by two, two that are tied, a frozen one, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.tied, self.last = nn.Linear(36, 36), nn.Linear(36, 36), nn.Linear(36, 5)
        self.tied.weight = self.inner.weight
        self.frozen = nn.Parameter(torch.rand(36) + 0.5, requires_grad=False)
        self.register_buffer("scale", torch.rand(36) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.inner(x.flatten(1))) * self.frozen * self.get_buffer("scale")
        return self.last(torch.tanh(self.tied(x)))


class HalfTanh(torch.autograd.Function):
    """tanh with a right first derivative that says nothing of its own dependence on x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        ctx.slope = (1 - x.tanh() ** 2).detach()
        return x.tanh()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * ctx.slope


def images(count: int, *keys: int | str) -> tuple[Tensor, Tensor]:
    """Inputs [count, 1, 6, 6] in float64 that tell their labels [count] up to some noise."""
    random = generator("images", *keys)
    labels = torch.randint(CLASSES, (count,), generator=random)
    patterns = torch.randn(CLASSES, 1, 6, 6, generator=generator("patterns"), dtype=torch.float64)
    noise = torch.randn(count, 1, 6, 6, generator=random, dtype=torch.float64)
    return patterns[labels] + noise, labels


def image_task(build: Callable[[], nn.Module] = conv_bn, loss: Callable[..., Tensor] = F.cross_entropy) -> TensorTask:
    """Classification with 5 batches of 8 images per epoch and 16 validation images."""
    return TensorTask(build, images(40, "train"), images(16, "val"), loss)


def regression_task(build: Callable[[], nn.Module] = mlp) -> TensorTask:
    """Regression of [B, 4] by mean-squared error, on the same images."""
    (x, labels), (val_x, val_labels) = images(40, "train"), images(16, "val")
    one_hot = partial(F.one_hot, num_classes=CLASSES)
    return TensorTask(build, (x, one_hot(labels).double()), (val_x, one_hot(val_labels).double()), F.mse_loss)


def smoothed_task(build: Callable[[], nn.Module] = mlp) -> TensorTask:
    """Classification whose training loss has a hyperparameter of its own, `smoothing`."""
    task = image_task(build, smoothed_cross_entropy)
    task.val_loss = F.cross_entropy
    return task


def smoothed_cross_entropy(output: Tensor, target: Tensor, hyperparameters: Mapping[str, Tensor]) -> Tensor:
    """Cross-entropy with label smoothing: (1 − s)·nll + s·(mean of −log p over classes)."""
    log_p = output.log_softmax(-1)
    s = hyperparameters["smoothing"]
    return (1 - s) * F.nll_loss(log_p, target) - s * log_p.mean()


def make_problem(
    task: Task,
    buckets: Buckets,
    fixed: Mapping[str, float] | None = None,
    *,
    optimizer: InnerOptimizer | None = None,
    method: str = "double_backward",
    clip_hvp: float | None = None,
    pruning: Pruning | None = None,
    chunk_size: int | None = None,
    clip_gradient: float | None = None,
    clip_norm: float | None = None,
    ema: float | None = None,
    val_batch_norm: str = "batch",
    dtype: torch.dtype = torch.float64,
    groups: Mapping[str, str] | None = None,
    accumulate: int = 1,
    shape: str = "constant",
) -> Problem:
    """A float64 problem on the CPU that learns `buckets`; their first values are the initial ones.

    Hyperparameters of the optimizer that are neither in `buckets` nor in `fixed` have its defaults. With `groups` (name
    to pattern) `buckets` may have copies for them, such as `lr.norm`.
    """
    optimizer = optimizer or SGD()
    learned = tuple(
        Hyperparameter(name, init=values[0], step=0.1, buckets=len(values), size=size_of(values), shape=shape)
        for name, values in buckets.items()
    )
    given = {name.partition(".")[0] for name in buckets}
    defaults = {name: value for name, value in optimizer.defaults.items() if name not in given}
    return Problem(
        task=task,
        build_model=task.build_model,  # type: ignore[attr-defined]
        optimizer=optimizer,
        space=HyperparameterSpace(learned, {**defaults, **(fixed or {})}),
        tangents=TangentOptions(method, clip_hvp, pruning or Pruning(), chunk_size),
        device=CPU,
        dtype=dtype,
        clip_gradient=clip_gradient,
        clip_norm=clip_norm,
        ema=ema,
        val_batch_norm=val_batch_norm,
        groups=groups or {},
        accumulate=accumulate,
    )


def flat(buckets: Buckets) -> list[float]:
    """λ [K] of these values."""
    return [number for values in buckets.values() for number in values_module.flat(values)]


def go_on(state: InnerState, loss: Tensor) -> bool:
    """The `OnStep` that never ends a run."""
    return True


def relative_error(found: Tensor | Sequence[float], reference: Tensor | Sequence[float]) -> float:
    """|found − reference| / |reference|, Euclidean over all entries, in float64."""
    found, reference = (torch.as_tensor(part, dtype=torch.float64).detach() for part in (found, reference))
    return ((found - reference).norm() / reference.norm()).item()
