"""Models of transformers on batches as its tokenizers give them (`-m zoo`, with transformers installed)."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hugging_face_networks import CLASSES, RECIPES, TOKENS, Recipe
from problems import relative_error
from torch import nn

import fds_dist

pytestmark = [
    pytest.mark.zoo,
    pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed"),
]
WITHOUT_DROPOUT = {
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
}
TOLERANCES = {"bert": 1e-10, "gpt2": 1e-6}
"""Float64 through four steps; GPT-2's own loss is computed in float32, whose rounding of 6e-8 grows a little a step."""


class Sentences:
    """Batches of 8 sentences as a `BatchEncoding`, with labels for their classes or for each token."""

    steps_per_epoch = 4

    def __init__(self, name: str) -> None:
        recipe = RECIPES[name]
        self.recipe = Recipe(recipe.model, self.itself, {**recipe.options, **WITHOUT_DROPOUT[name]})
        self.of_tokens = name == "gpt2"

    @staticmethod
    def itself(model: nn.Module) -> nn.Module:
        return model

    def batch(self, *keys: int) -> Any:
        encoding: Callable[..., Any] = importlib.import_module("transformers").BatchEncoding
        random = torch.Generator().manual_seed(sum(keys))
        ids = torch.randint(3, TOKENS, (8, 6), generator=random)
        mask = (torch.arange(6) < torch.randint(3, 7, (8, 1), generator=random)).long()
        labels = ids.where(mask.bool(), torch.tensor(-100)) if self.of_tokens else ids[:, 0] % CLASSES
        return encoding({"input_ids": ids, "attention_mask": mask, "labels": labels})

    def train_batches(self, outer_step: int, epoch: int) -> Iterator[Any]:
        return (self.batch(epoch, step) for step in range(self.steps_per_epoch))

    def val_batches(self, outer_step: int) -> Iterator[Any]:
        return iter([self.batch(100)])

    def test_batches(self) -> Iterator[Any]:
        return iter([self.batch(200)])

    def build_model(self, seed: int) -> nn.Module:
        torch.manual_seed(0)
        return self.recipe.build()

    def loss(self, output: Any, batch: Any) -> Any:
        return output.loss

    def metrics(self, output: Any, batch: Any) -> dict[str, Any]:
        return {"perplexity": output.loss.exp()}


@pytest.mark.parametrize("name", WITHOUT_DROPOUT)
def test_a_model_with_its_own_loss_is_learned_by_each_method_alike(name: str, tmp_path: Path) -> None:
    """By three methods alike, each compared with plain PyTorch before its run."""
    results = {}
    for method, estimator in (("jvp", "forward"), ("double_backward", "forward"), ("auto", "reverse")):
        config = {
            "inner": {"epochs": 1},
            "hyperparameters": {
                "lr": {"init": 0.1, "buckets": 2, "step": 0.05},
                "momentum": {"init": 0.5, "step": 0.1},
            },
            "outer": {"optimizer": "sign", "steps": 1},
            "tangents": {"method": method},
            "estimator": estimator,
            "dtype": "float64",
            "output_dir": str(tmp_path),
            "name": f"{method}-{estimator}",
        }
        result = fds_dist.optimize(config, task=Sentences(name), progress=False)  # type: ignore[arg-type]
        (record,) = result.history
        assert record.metrics is not None and record.val_accuracy is None
        results[method] = [*record.hypergradients["lr"], *record.hypergradients["momentum"]]
    assert all(results["auto"])
    for method in ("jvp", "double_backward"):
        assert relative_error(results[method], results["auto"]) < TOLERANCES[name]
