"""Shows the way from Lightning and back: a schedule learned for a LightningModule's network, and used by its Trainer.

The search trains fresh networks on the module's data and loss. The schedule then sets learning rate and momentum of the
Trainer's optimizer step by step, as the LR scheduler of `configure_optimizers`.
"""

from __future__ import annotations

from typing import Any

import lightning
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split

import fds_dist

EPOCHS = 5
images, labels = load_digits(return_X_y=True)
DATA = TensorDataset(torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels))


class Digits(lightning.LightningModule):
    def __init__(self, schedule: fds_dist.Schedule) -> None:
        super().__init__()
        self.network, self.schedule = network(), schedule

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def test_step(self, batch: list[torch.Tensor], index: int) -> None:
        self.log("accuracy", (self.network(batch[0]).argmax(1) == batch[1]).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        driver = self.schedule.attach(optimizer, horizon=int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": driver, "interval": "step"}}


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


if __name__ == "__main__":
    train, test = random_split(DATA, [1400, len(DATA) - 1400], generator=torch.Generator().manual_seed(0))
    task = fds_dist.task_from_datasets(train, test=test, batch_size=64, val_fraction=0.2, loss=F.cross_entropy)
    knobs = {"lr": {"init": 0.02, "buckets": 4}, "momentum": {"max": 0.99}}
    config = {"inner": {"epochs": EPOCHS}, "hyperparameters": knobs, "outer": {"steps": 4}}
    result = fds_dist.optimize(config, task=task, model=lambda seed: network())

    trainer = lightning.Trainer(max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_checkpointing=False)
    module = Digits(result.schedule)
    trainer.fit(module, DataLoader(train, batch_size=64, shuffle=True))
    trainer.test(module, DataLoader(test, batch_size=512))
