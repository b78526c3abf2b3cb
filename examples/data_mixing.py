"""Shows learned weights of two data sources, one with wrong labels: a vector hyperparameter of the loss.

A batch has samples of both sources; its loss is the weighted sum of the sources' mean losses.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import fds_dist

data, target = load_digits(return_X_y=True)
images, labels = torch.tensor(data, dtype=torch.float32) / 16, torch.tensor(target)

WRONG = 1
source = torch.arange(len(labels)) % 2
generator = torch.Generator().manual_seed(0)
seen = torch.where(source == WRONG, torch.randint(10, labels.shape, generator=generator), labels)
train, val = slice(0, 1200), slice(1200, None)


def mixed_loss(output, target, h):
    """Σ mix[i] · (mean loss of the samples of source i), by `mix` [2]."""
    label, source = target.unbind(1)
    losses = F.cross_entropy(output, label, reduction="none")
    members = F.one_hot(source, 2).to(losses.dtype)  # [B, 2]
    return (h["mix"] * (losses @ members) / members.sum(0).clamp(min=1)).sum()


def search() -> fds_dist.RunResult:
    """The validation data have right labels, and no source."""
    task = fds_dist.task_from_datasets(
        (images[train], torch.stack([seen, source], 1)[train]),
        val=(images[val], labels[val]),
        batch_size=60,
        loss=mixed_loss,
        val_loss=F.cross_entropy,
    )
    config = {
        "inner": {"steps": 60},
        "hyperparameters": {
            "mix": {"init": 0.5, "size": 2, "buckets": 2, "step": 0.2, "min": 0.0, "max": 1.0},
            "lr": 0.5,
        },
        "outer": {"steps": 5},
    }
    return fds_dist.optimize(config, task=task, model=nn.Linear(64, 10))


if __name__ == "__main__":
    for bucket, (right, wrong) in enumerate(search().schedule.values["mix"]):
        print(f"bucket {bucket}: weight {right:.2f} of the source with right labels, {wrong:.2f} of the other")
