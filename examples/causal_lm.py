"""Shows a causal language model: torch's own layers, AdamW with groups, a bound on the gradient's norm, an average.

python causal_lm.py [FILE]       learns on the bytes of FILE (else of a module of Python's), and trains twice as long
"""

from __future__ import annotations

import argparse
import sys

import torch
from torch import Tensor, nn

import fds_dist

CONTEXT, WIDTH = 16, 32
TEXT = sys.argv[1] if sys.argv[1:] else argparse.__file__
GROUPS = {"no_decay": "norm|bias|embedding|position", "decay": ".*"}
HELD_AT_0 = {"init": 0.0, "max": 0.0}


class GPT(nn.Module):
    """Windows of bytes [B, T] → logits of the next byte [B, T, 256]."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 256)

    def forward(self, window: Tensor) -> Tensor:
        x = self.embedding(window.long()) + self.position.weight
        mask = nn.Transformer.generate_square_subsequent_mask(CONTEXT, window.device, x.dtype)
        return self.head(self.blocks(x, mask, is_causal=True))


CONFIG = {
    "task": {
        "name": "text",
        "path": sys.argv[1] if sys.argv[1:] else argparse.__file__,
        "context": CONTEXT,
        "batch_size": 16,
    },
    "inner": {"optimizer": "adamw", "steps": 60, "clip_norm": 1.0, "ema": 0.9, "groups": GROUPS},
    "hyperparameters": {
        "lr": {"init": 3e-3, "buckets": 3},
        "weight_decay": {"init": 0.1, "per_group": {"no_decay": HELD_AT_0}},
    },
    "outer": {"steps": 3},
}

if __name__ == "__main__":
    torch.manual_seed(0)
    model = GPT()
    result = fds_dist.optimize(CONFIG, model=model)
    print({name: [f"{value:.3g}" for value in values] for name, values in result.schedule.values.items()})
    fds_dist.retrain(result.run_dir, ["steps=120"], model=model)
