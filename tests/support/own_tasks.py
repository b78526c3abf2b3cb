"""Tasks of a user's own, right and wrong, as `own_tasks:function` of a config finds them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 3


class Blobs:
    """Noisy images of three classes; the batches depend on their arguments alone."""

    steps_per_epoch = 4

    def __init__(self, side: int = 6, channels: int = 2) -> None:
        self.side, self.channels = side, channels

    def batch(self, *keys: int) -> tuple[Tensor, Tensor]:
        random = torch.Generator().manual_seed(hash(keys))
        y = torch.arange(8) % CLASSES
        x = torch.randn(8, 1, self.side, self.side, generator=random) + (y - 1.0)[:, None, None, None]
        return x, y

    def train_batches(self, outer_step: int, epoch: int) -> Any:
        return [self.batch(outer_step, epoch, index) for index in range(self.steps_per_epoch)]

    def val_batches(self, outer_step: int) -> Any:
        return [self.batch(outer_step, -1)]

    def test_batches(self) -> Any:
        return [self.batch(-1)]

    def loss(self, output: Tensor, target: Tensor) -> Any:
        return F.cross_entropy(output, target)

    def build_model(self, seed: int) -> Any:
        features = self.channels * (self.side - 2) ** 2
        convolution = nn.Conv2d(1, self.channels, 3)
        return nn.Sequential(
            convolution, nn.BatchNorm2d(self.channels), nn.ReLU(), nn.Flatten(), nn.Linear(features, CLASSES)
        )


def blobs(side: int = 6, channels: int = 2) -> Blobs:
    """The right one."""
    return Blobs(side, channels)


class PerRank(Blobs):
    """From the second epoch on, rank 1 sees other batches; each rank writes its validation losses to `record`-RANK."""

    rank = os.environ.get("RANK", "0")

    def __init__(self, record: str) -> None:
        super().__init__()
        self.record = Path(f"{record}-{self.rank}")

    def train_batches(self, outer_step: int, epoch: int) -> Any:
        turn = 1 if epoch and self.rank == "1" else 0
        return [(x.roll(turn, 0), y) for x, y in super().train_batches(outer_step, epoch)]

    def val_loss(self, output: Tensor, target: Tensor) -> Tensor:
        loss = self.loss(output, target)
        with self.record.open("a") as file:
            file.write(f"{loss.item().hex()}\n")
        return loss


def per_rank(record: str) -> PerRank:
    """Breaks the rule that batches are the same on every rank."""
    return PerRank(record)


class Unseeded(Blobs):
    """Batches that are another on every rank from the second outer step on."""

    def train_batches(self, outer_step: int, epoch: int) -> Any:
        return super().train_batches(outer_step, epoch + 10 * int(PerRank.rank) * (outer_step > 0))


class Dying(Blobs):
    """Rank 1 alone fails, in the second epoch."""

    def train_batches(self, outer_step: int, epoch: int) -> Any:
        return raises() if epoch and PerRank.rank == "1" else super().train_batches(outer_step, epoch)


class Stopping(Blobs):
    """Raises in outer step 1, for as long as the file `switch` is there, the exception that is named in it."""

    def __init__(self, switch: str) -> None:
        super().__init__()
        self.switch = Path(switch)

    def train_batches(self, outer_step: int, epoch: int) -> Any:
        if outer_step == 1 and self.switch.exists():
            raise {"KeyboardInterrupt": KeyboardInterrupt, "OSError": OSError}[self.switch.read_text()]("planted")
        return super().train_batches(outer_step, epoch)


def stopping(switch: str) -> Stopping:
    """A run that is interrupted, or that fails."""
    return Stopping(switch)


class Cut(Stopping):
    """Is interrupted as `Stopping`, but in the second epoch."""

    def train_batches(self, outer_step: int, epoch: int) -> Any:
        if outer_step == 1 and epoch and self.switch.exists():
            raise KeyboardInterrupt
        return Blobs.train_batches(self, outer_step, epoch)


def cut(switch: str) -> Cut:
    """A run that is interrupted within an outer step."""
    return Cut(switch)


def raises(*arguments: object) -> Any:
    raise ValueError("planted")  # the line that messages must name


class Narrow(nn.Module):
    """Takes images of another size than they are."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1))


def _named(batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    return dict(zip("xy", batch, strict=True))


WRONG: dict[str, dict[str, Callable[[Blobs], Any]]] = {
    "train_batches raises": {"train_batches": lambda task: raises},
    "train_batches gives nothing": {"train_batches": lambda task: lambda outer_step, epoch: None},
    "train_batches is short": {"train_batches": lambda task: lambda outer_step, epoch: [task.batch(0)]},
    "train_batches runs dry": {
        "train_batches": lambda task: lambda outer_step, epoch: iter([task.batch(0)] * (1 if epoch else 4))
    },
    "train_batches gives mappings": {"train_batches": lambda task: lambda o, e: [_named(task.batch(0))] * 4},
    "train_batches gives triples": {"train_batches": lambda task: lambda o, e: [(*task.batch(0), 1)] * 4},
    "train_batches gives arrays": {
        "train_batches": lambda task: lambda o, e: [(x.numpy(), y) for x, y in [task.batch(0)]] * 4
    },
    "val_batches is empty": {"val_batches": lambda task: lambda outer_step: []},
    "val_batches raises": {"val_batches": lambda task: raises},
    "loss is a vector": {"loss": lambda task: lambda output, target: F.cross_entropy(output, target, reduction="none")},
    "loss is a float": {"loss": lambda task: lambda output, target: F.cross_entropy(output, target).item()},
    "loss is detached": {"loss": lambda task: lambda output, target: F.cross_entropy(output.detach(), target)},
    "loss does not fit": {"loss": lambda task: lambda output, target: F.cross_entropy(output[1:], target)},
    "loss raises": {"loss": lambda task: lambda output, target: raises()},
    "val_loss is a vector": {"val_loss": lambda task: lambda output, target: output.sum(1)},
    "build_model raises": {"build_model": lambda task: raises},
    "build_model gives nothing": {"build_model": lambda task: lambda seed: None},
    "the network does not fit": {"build_model": lambda task: lambda seed: Narrow()},
}


def wrong(how: str) -> Blobs:
    """`blobs` with one member replaced by a mistake."""
    task = Blobs()
    for name, make in WRONG[how].items():
        setattr(task, name, make(task))
    return task


def unfinished() -> Blobs:
    return raises()
