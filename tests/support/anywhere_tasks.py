"""Tasks whose loss has vectors of hyperparameters, and a plain unrolled run that autograd goes back through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from problems import Buckets, TensorTask, images, mlp
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from fds_dist.common.randomness import derive_seed, generator

SAMPLES, BATCH = 24, 8
Named = Mapping[str, Tensor]


def plain_val_loss(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy by the labels alone."""
    return F.cross_entropy(output, target[:, 0] if target.dim() == 2 else target)


def class_weighted(output: Tensor, target: Tensor, h: Named) -> Tensor:
    """Σ weight[class] · nll / Σ weight[class], by `class_weights` [C].

    `F.cross_entropy(weight=...)` has no derivative by the weights.
    """
    weights = h["class_weights"][target]
    return (weights * F.cross_entropy(output, target, reduction="none")).sum() / weights.sum()


def sample_weighted(output: Tensor, target: Tensor, h: Named) -> Tensor:
    """The mean of weight[sample] · nll; targets [B, 2] are label and index."""
    labels, index = target.unbind(1)
    return (h["weights"][index] * F.cross_entropy(output, labels, reduction="none")).mean()


def mixed(output: Tensor, target: Tensor, h: Named) -> Tensor:
    """Σ mix[source] · (mean nll of the samples of that source); targets [B, 2] are label and source."""
    labels, source = target.unbind(1)
    nll = F.cross_entropy(output, labels, reduction="none")
    sources = F.one_hot(source, 2).to(nll.dtype)
    return (h["mix"] * (sources * nll[:, None]).sum(0) / sources.sum(0)).sum()


def regularized(output: Tensor, target: Tensor, h: Named) -> Tensor:
    """Cross-entropy, a penalty on the outputs and one on their entropy, by `penalties` [2]."""
    log_p = output.log_softmax(-1)
    penalties = torch.stack([(output**2).mean(), (log_p.exp() * log_p).sum(-1).mean()])
    return F.nll_loss(log_p, target) + (h["penalties"] * penalties).sum()


def tasks() -> dict[str, tuple[TensorTask, Buckets]]:
    """By name a task and the values that it is differentiated at."""
    (x, labels), val = images(SAMPLES, "train"), images(16, "val")
    index, source = torch.arange(SAMPLES), torch.arange(SAMPLES) % 2
    spread = torch.rand(SAMPLES, generator=generator("weights"), dtype=torch.float64) + 0.5
    own: dict[str, tuple[object, Tensor, Buckets]] = {
        "class_weights": (class_weighted, labels, {"class_weights": [[1.0, 0.8, 1.2, 0.9], [0.7, 1.1, 1.0, 1.3]]}),
        "weights": (sample_weighted, torch.stack([labels, index], 1), {"weights": [spread.tolist()]}),
        "mix": (mixed, torch.stack([labels, source], 1), {"mix": [[0.6, 0.4], [0.5, 0.5], [0.2, 0.7]]}),
        "penalties": (regularized, labels, {"penalties": [[0.01, 0.1], [0.02, 0.05]]}),
    }
    fast: Buckets = {"lr": [0.3, 0.2], "momentum": [0.5]}
    return {
        name: (TensorTask(mlp, (x, targets), val, loss, plain_val_loss, BATCH), {**fast, **vectors})  # type: ignore[arg-type]
        for name, (loss, targets, vectors) in own.items()
    }


@dataclass
class AugmentedTask(TensorTask):
    """Images made brighter and noisier, by `brightness` [] and `noise` [2] (of the left and of the right half)."""

    def augment(self, inputs: Tensor, generator: torch.Generator, h: Named) -> Tensor:
        options = {"generator": generator, "dtype": inputs.dtype, "device": inputs.device}
        bright = 1 + h["brightness"] * torch.rand(len(inputs), 1, 1, 1, **options)  # type: ignore[arg-type]
        noise = h["noise"].repeat_interleave(inputs.shape[-1] // 2) * torch.randn(inputs.shape, **options)  # type: ignore[arg-type]
        return inputs * bright + noise


def augmented_task() -> tuple[AugmentedTask, Buckets]:
    """A task without hyperparameters of the loss, and the values that it is differentiated at."""
    task = AugmentedTask(mlp, images(SAMPLES, "train"), images(16, "val"), batch_size=BATCH)
    return task, {"lr": [0.3, 0.2], "momentum": [0.5], "brightness": [0.4], "noise": [[0.3, 0.1], [0.2, 0.4]]}


def as_tensors(buckets: Buckets) -> dict[str, Tensor]:
    """By name [buckets] or [buckets, size]."""
    return {name: torch.tensor(row, dtype=torch.float64, requires_grad=True) for name, row in buckets.items()}


def unrolled_loss(task: TensorTask, values: Named, horizon: int) -> Tensor:
    """The validation loss after `horizon` steps of SGD with momentum."""
    module = task.build_model(0).double()
    weights: dict[str, Tensor] = dict(module.named_parameters())
    velocity = {name: torch.zeros_like(w) for name, w in weights.items()}
    batches = list(task.train_batches(0, 0))
    for step in range(horizon):
        h = {name: row[len(row) * step // horizon] for name, row in values.items()}
        inputs, targets = batches[step % len(batches)]
        inside = {name: value for name, value in h.items() if name not in ("lr", "momentum")}
        extra: tuple[Named, ...] = (inside,)
        if isinstance(task, AugmentedTask):
            seed = derive_seed(derive_seed(0, 0, step, "step"), "augment")
            inputs, extra = task.augment(inputs, torch.Generator().manual_seed(seed), inside), ()
        loss = task.loss(functional_call(module, weights, (inputs,)), targets, *extra)
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        for (name, w), g in zip(weights.items(), gradients, strict=True):
            velocity[name] = h["momentum"] * velocity[name] + g
            weights[name] = w - h["lr"] * velocity[name]
    inputs, targets = task.val
    return plain_val_loss(functional_call(module, weights, (inputs,)), targets)


def unrolled_hypergradients(task: TensorTask, buckets: Buckets, horizon: int) -> list[float]:
    """[K] by autograd through the whole run."""
    values = as_tensors(buckets)
    gradients = torch.autograd.grad(unrolled_loss(task, values, horizon), list(values.values()))
    return torch.cat([gradient.flatten() for gradient in gradients]).tolist()
