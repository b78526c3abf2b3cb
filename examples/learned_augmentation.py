"""Shows augmentation whose strength is learned: brightness and noise of the training images, by the validation loss.

The task's `augment` gets the values as tensors, and derivatives pass through what it does with them.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn

import fds_dist

data, target = load_digits(return_X_y=True)
images, labels = torch.tensor(data, dtype=torch.float32) / 16, torch.tensor(target)


def augment(inputs, generator, h):
    """All random numbers come from `generator`, for the whole batch: every rank then sees the same ones."""
    options = {"generator": generator, "device": inputs.device, "dtype": inputs.dtype}
    brightness = 1 + h["brightness"] * torch.randn(len(inputs), 1, **options)
    return inputs * brightness + h["noise"] * torch.randn(inputs.shape, **options)


def search() -> fds_dist.RunResult:
    """Few images to train on, so that changing them helps; the two strengths may differ early and late."""
    task = fds_dist.task_from_datasets(
        (images[:200], labels[:200]),
        val=(images[200:1000], labels[200:1000]),
        test=(images[1000:], labels[1000:]),
        batch_size=50,
        augment=augment,
    )
    strength = {"init": 0.2, "step": 0.1, "buckets": 2, "min": 0.0}
    config = {
        "inner": {"steps": 150},
        "hyperparameters": {"brightness": strength, "noise": strength, "lr": 0.2, "momentum": 0.9},
        "outer": {"steps": 5},
    }
    return fds_dist.optimize(config, task=task, model=nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)))


if __name__ == "__main__":
    result = search()
    for name in ("brightness", "noise"):
        print(name, "early and late:", [f"{value:.2f}" for value in result.schedule.values[name]])
    first, *_, last = result.history
    print(f"validation loss from {first.val_loss:.3f} to {last.val_loss:.3f}")
