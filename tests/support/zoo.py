"""Other people's networks at a small size with random weights, timm's and Hugging Face's, through `verify`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from hugging_face_networks import CLASSES, HUGGING_FACE, SIDE, TOKENS, LanguageModel, TextClassifier, Translator
from timm_networks import TIMM
from torch import Tensor, nn
from torch.nn import functional as F

import fds_dist
from fds_dist.common.randomness import generator

LENGTH, STEPS, BATCH = 6, 3, 4

HYPERPARAMETERS = {
    "lr": {"init": 0.01, "step": 0.005, "buckets": 2},
    "momentum": {"init": 0.8, "step": 0.1},
    "weight_decay": {"init": 0.01, "step": 0.005},
}

NETWORKS: dict[str, Callable[[], nn.Module]] = {**TIMM, **{f"hf_{name}": build for name, build in HUGGING_FACE.items()}}


@dataclass
class ZooTask:
    """Random batches: images and classes, token ids and classes, or token ids and next tokens."""

    train: list[tuple[Tensor, Tensor]]
    val: list[tuple[Tensor, Tensor]]
    loss: Callable[..., Tensor] = F.cross_entropy
    steps_per_epoch: int = STEPS

    def train_batches(self, outer_step: int, epoch: int) -> list[tuple[Tensor, Tensor]]:
        return self.train

    def val_batches(self, outer_step: int) -> list[tuple[Tensor, Tensor]]:
        return self.val

    def test_batches(self) -> list[tuple[Tensor, Tensor]]:
        return self.val


def task_for(build: Callable[[], nn.Module]) -> ZooTask:
    """Batches that the network takes."""
    module = build()
    random = generator("zoo")
    tokens = isinstance(module, TextClassifier)

    def batches(count: int) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(count):
            shape = (BATCH, LENGTH) if tokens else (BATCH, 3, SIDE, SIDE)
            x = torch.randint(2, TOKENS, shape, generator=random) if tokens else torch.randn(shape, generator=random)
            causal = isinstance(module, (LanguageModel, Translator))
            y = x.roll(-1, 1) if causal else torch.randint(CLASSES, (BATCH,), generator=random)
            yield x, y

    return ZooTask(list(batches(STEPS)), list(batches(1)))


@dataclass(frozen=True)
class Tried:
    """What became of one network: the verdict, and numbers or the words of the refusal."""

    verdict: str
    detail: str


def tried(name: str, *overrides: str) -> Tried:
    """`verify` of the network `name` over a few steps; the dry run before it compares it with plain PyTorch."""
    build = NETWORKS[name]
    config = {"hyperparameters": HYPERPARAMETERS, "inner": {"epochs": 1}, "outer": {"optimizer": "sign", "steps": 1}}
    try:
        result = fds_dist.verify(config, overrides, steps=STEPS, task=task_for(build), model=lambda seed: build())
    except fds_dist.UserError as error:
        return Tried("refused", str(error))
    verification = result.verification
    errors = [f"{comparison.name} {comparison.error:.0e}" for comparison in verification.comparisons]
    plain = [remark for remark in result.built.remarks if "plain PyTorch" in remark]
    return Tried("right" if verification.passed else "wrong", "; ".join([*errors, *verification.left_out, *plain]))
