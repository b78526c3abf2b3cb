"""Hugging Face's networks with random weights and tiny configurations: text, language models and images."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from fds_dist.common.vision import import_torchvision

CLASSES, SIDE, TOKENS = 5, 32, 40


class TextClassifier(nn.Module):
    """Token ids [B, length] to logits [B, CLASSES]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        return self.model(input_ids=x).logits


class LanguageModel(TextClassifier):
    """Token ids [B, length] to the scores of each next token [B, TOKENS, length]."""

    def forward(self, x: Tensor) -> Tensor:
        """The scores, classes second as `cross_entropy` has them."""
        return super().forward(x).transpose(1, 2)


class Translator(TextClassifier):
    """An encoder-decoder that reads the same tokens on both sides."""

    def forward(self, x: Tensor) -> Tensor:
        """The scores of each next token [B, TOKENS, length]."""
        return self.model(input_ids=x, decoder_input_ids=x).logits.transpose(1, 2)


class ImageClassifier(nn.Module):
    """Images [B, 3, SIDE, SIDE] to logits [B, CLASSES]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        return self.model(pixel_values=x).logits


class PooledClassifier(nn.Module):
    """Images to logits by a linear head on the pooled output of a model that has no head."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.head = model, nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        return self.head(self.model(pixel_values=x).pooler_output)


@dataclass(frozen=True)
class Recipe:
    """A model's class in transformers, the options of its configuration, and the module around it."""

    model: str
    wrapper: Callable[[nn.Module], nn.Module]
    options: dict[str, Any] = field(default_factory=dict)

    def build(self) -> nn.Module:
        """The module with random weights."""
        import_torchvision()  # transformers imports it, and its compiled operators may not load
        transformers = importlib.import_module("transformers")
        model = getattr(transformers, self.model)
        return self.wrapper(model(model.config_class(**self.options)))


_SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_TEXT = {**_SMALL, **_SPECIAL, "vocab_size": TOKENS, "max_position_embeddings": 16, "num_labels": CLASSES}
_GPT2 = {**_SPECIAL, "vocab_size": TOKENS, "n_embd": 16, "n_layer": 2, "n_head": 2}
_LLAMA = {**_TEXT, "num_key_value_heads": 1}
_IMAGE = {**_SMALL, "image_size": SIDE, "patch_size": 8, "num_labels": CLASSES}
_DISTILBERT = {"vocab_size": TOKENS, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "num_labels": CLASSES}
_T5 = {"vocab_size": TOKENS, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
_MAMBA = {**_SPECIAL, "vocab_size": TOKENS, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
_CONVNEXT = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "num_labels": CLASSES}

RECIPES = {
    "albert": Recipe("AlbertForSequenceClassification", TextClassifier, {**_TEXT, "embedding_size": 8}),
    "bert": Recipe("BertForSequenceClassification", TextClassifier, _TEXT),
    "clip_vision": Recipe("CLIPVisionModel", PooledClassifier, _IMAGE),
    "convnext": Recipe("ConvNextForImageClassification", ImageClassifier, _CONVNEXT),
    "distilbert": Recipe("DistilBertForSequenceClassification", TextClassifier, _DISTILBERT),
    "gpt2": Recipe("GPT2LMHeadModel", LanguageModel, _GPT2),
    "llama": Recipe("LlamaForCausalLM", LanguageModel, _LLAMA),
    "mamba": Recipe("MambaForCausalLM", LanguageModel, _MAMBA),
    "mistral": Recipe("MistralForCausalLM", LanguageModel, _LLAMA),
    "qwen2": Recipe("Qwen2ForCausalLM", LanguageModel, _LLAMA),
    "roberta": Recipe("RobertaForSequenceClassification", TextClassifier, _TEXT),
    "t5": Recipe("T5ForConditionalGeneration", Translator, _T5),
    "vit": Recipe("ViTForImageClassification", ImageClassifier, _IMAGE),
}
HUGGING_FACE = {name: partial(Recipe.build, recipe) for name, recipe in RECIPES.items()}
