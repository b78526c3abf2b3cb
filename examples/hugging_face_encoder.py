"""Shows batches that are mappings, as Hugging Face's models take them: an encoder that computes its own loss.

The batch goes to the model as keywords, `model(**batch)`; the loss reads the model's output. The encoder is small, with
random weights, and learns which of four words a sentence says most often; sentences are padded, with an attention mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

import fds_dist

WORDS, LENGTH, CLASSES, BATCH = 12, 10, 4, 32
SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
WITHOUT_DROPOUT: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
DATA: dict[str, Any] = {"vocab_size": WORDS, "max_position_embeddings": LENGTH, "num_labels": CLASSES}
CONFIG = BertConfig(**SMALL, **WITHOUT_DROPOUT, **DATA)


class Sentences:
    steps_per_epoch = 20

    def batch(self, *keys: int) -> dict[str, Tensor]:
        """A function of its keys alone; token 0 is padding, 1 to 4 are the words that count."""
        random = torch.Generator().manual_seed(sum(key * 1009**place for place, key in enumerate(keys, 1)))
        ids = torch.randint(1, WORDS, (BATCH, LENGTH), generator=random)
        mask = torch.arange(LENGTH) < torch.randint(LENGTH // 2, LENGTH + 1, (BATCH, 1), generator=random)
        counts = torch.stack([((ids == word) & mask).sum(1) for word in range(1, CLASSES + 1)], 1)
        return {"input_ids": ids * mask, "attention_mask": mask.long(), "labels": counts.argmax(1)}

    def train_batches(self, outer_step: int, epoch: int) -> Iterator[dict[str, Tensor]]:
        return (self.batch(outer_step, epoch, step, 1) for step in range(self.steps_per_epoch))

    def val_batches(self, outer_step: int) -> Iterator[dict[str, Tensor]]:
        return (self.batch(outer_step, 0, step, 2) for step in range(4))

    def test_batches(self) -> Iterator[dict[str, Tensor]]:
        return (self.batch(0, 0, step, 3) for step in range(8))

    def build_model(self, seed: int) -> nn.Module:
        return BertForSequenceClassification(CONFIG)

    loss = staticmethod(lambda output, batch: output.loss)
    metrics = staticmethod(
        lambda output, batch: {"accuracy": (output.logits.argmax(1) == batch["labels"]).float().mean()}
    )


if __name__ == "__main__":
    learned = {"lr": {"buckets": 4}}
    search = {"inner": {"optimizer": "adamw", "epochs": 3}, "hyperparameters": learned, "outer": {"steps": 6}}
    result = fds_dist.optimize(search, task=Sentences())
    for record in result.history:
        print(record.outer_step, record.hyperparameters["lr"], f"{record.val_loss:.3f} {record.val_accuracy:.1%}")
