"""Shows fine-tuning of a timm network: weights from a file, frozen first stages, a learning rate for the new head.

The file would be timm's own; here a short training on the digits 0 to 4 makes it, so that nothing is downloaded.
"""

from __future__ import annotations

import timm
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn

import fds_dist

NETWORK, FILE = "test_resnet", "pretrained.safetensors"


def digits(lowest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [N, 3, 16, 16] of five digits from `lowest` on, and their classes [N]."""
    images, labels = (torch.from_numpy(part) for part in load_digits(return_X_y=True))
    chosen = (labels >= lowest) & (labels < lowest + 5)
    images = (images[chosen].float() / 8 - 1).reshape(-1, 1, 8, 8)
    return nn.functional.interpolate(images, scale_factor=2).expand(-1, 3, -1, -1), labels[chosen] - lowest


def pretrain(steps: int = 60) -> None:
    """Writes `FILE`: the network after some steps on the digits 0 to 4, with a head of ten outputs."""
    torch.manual_seed(0)
    network, (images, labels) = timm.create_model(NETWORK, num_classes=10), digits(0)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    for _ in range(steps):
        chosen = torch.randint(len(images), (32,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images[chosen]), labels[chosen]).backward()
        optimizer.step()
    save_file(network.state_dict(), FILE)


CONFIG = {
    "model": {
        **{"name": "timm:create_model", "model_name": NETWORK, "num_classes": 5},
        **{"weights": FILE, "weights_except": r"^fc\.", "freeze": r"^(conv1|bn1|layer1)\."},
    },
    "inner": {"optimizer": "adamw", "steps": 30, "groups": {"head": r"^fc\.", "body": ".*"}},
    "hyperparameters": {  # the first of the four knots is the warm-up
        "lr": {
            **{"init": [3e-6, 3e-4, 3e-4, 3e-6], "buckets": 4, "shape": "linear"},
            **{"per_group": {"head": {"init": [3e-5, 3e-3, 3e-3, 3e-5]}}},
        },
        "weight_decay": 0.05,
    },
    **{"outer": {"steps": 3}, "estimator": "reverse"},
}

if __name__ == "__main__":
    pretrain()
    result = fds_dist.optimize(CONFIG, task=fds_dist.task_from_datasets(digits(5), batch_size=32, val_fraction=0.3))
    print({name: [f"{value:.1e}" for value in values] for name, values in result.schedule.values.items()})
    print("validation loss of each outer step:", [round(record.val_loss, 3) for record in result.history])
