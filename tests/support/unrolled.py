"""References for hypergradients that share no code with the engine.

Training is written out in a loop, which `torch.autograd` goes back through as a whole, or whose outcome is differenced.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from problems import Buckets, TensorTask, relative_error
from torch import Tensor
from torch.func import functional_call

EXACT = 1e-12
"""Between exact methods: float64 rounding (1e-16), amplified some ten times in a hundred steps, and room for processors
that sum in another order."""

DIFFERENCES = 1e-6
"""Central differences of a smooth loss: with h = 1e-5 of the value, truncation is about 1e-10 of the derivative, and
rounding 1e-16·L/h at most 1e-7 of it. (A ReLU that switches within ±h would be off by 1e-3.)"""


@dataclass(frozen=True)
class Rules:
    """What the reference run does besides plain SGD."""

    optimizer: str = "sgd"
    nesterov: bool = False
    clip: float = math.inf
    norm: float = math.inf
    ema: float = 0.0
    patterns: Mapping[str, str] = field(default_factory=dict)
    """Parameter groups; the first that is found in a parameter's name is its own."""
    shape: str = "constant"
    """Of every hyperparameter with more than one value."""

    def of(self, parameter: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`values` as this parameter reads them: those without a group, and those of its own."""
        group = next((name for name, pattern in self.patterns.items() if re.search(pattern, parameter)), "")
        split = {name: name.partition(".") for name in values}
        return {split[name][0]: value for name, value in values.items() if split[name][2] in ("", group)}


INSIDE = ("smoothing", "temperature", "auxiliary", "focus")
"""Hyperparameters of losses here."""


def unrolled_loss(
    task: TensorTask, values: Mapping[str, Tensor], horizon: int, rules: Rules = Rules(), graph: bool = False
) -> Tensor:
    """The validation loss after `horizon` steps with `values` (name → [buckets]), differentiable where `graph`."""
    module = task.build_model(0).double().train()
    weights: dict[str, Tensor] = {name: p.detach().requires_grad_() for name, p in module.named_parameters()}
    buffers = dict(module.named_buffers())
    state = {name: (torch.zeros_like(w), torch.zeros_like(w)) for name, w in weights.items()}
    batches = list(task.train_batches(0, 0))
    average = weights
    for step in range(horizon):
        h = {name: value_at(row, step, horizon, rules.shape) for name, row in values.items()}
        inputs, targets = batches[step % len(batches)]
        inside = {name: value for name, value in h.items() if name in INSIDE}
        extra = (inside,) if inside else ()
        loss = task.loss(functional_call(module, {**weights, **buffers}, (inputs,)), targets, *extra)
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=graph)
        gradients = [torch.where(g.abs() <= rules.clip, g, rules.clip * g.sign()) for g in gradients]
        length = torch.stack([g.norm() for g in gradients]).norm()
        shrunk = rules.norm / (length + 1e-6) if length > rules.norm else 1.0
        for (name, w), g in zip(weights.items(), [shrunk * g for g in gradients], strict=True):
            own = rules.of(name, h)
            weights[name], state[name] = UPDATES[rules.optimizer](w, state[name], g, own, step + 1, rules.nesterov)
            if not graph:
                weights[name] = weights[name].detach().requires_grad_()
        decay = rules.ema if step else 0.0
        average = {name: decay * average[name] + (1 - decay) * w for name, w in weights.items()}
    inputs, targets = task.val  # batch-norm is still in training mode: it uses the statistics of this batch
    return (task.val_loss or task.loss)(functional_call(module, {**average, **buffers}, (inputs,)), targets)


def value_at(row: Tensor, step: int, horizon: int, shape: str) -> Tensor:
    """The value [] or [size] at a step, from the values [buckets] or [buckets, size]."""
    if shape == "constant" or len(row) == 1:
        return row[len(row) * step // horizon]
    knots = np.linspace(0, horizon - 1, len(row))
    weights = [float(np.interp(step, knots, knots == knot)) for knot in knots]  # numpy's own interpolation of a hat
    return sum((weight * value for weight, value in zip(weights, row, strict=True) if weight), torch.zeros(()))


def sgd(w: Tensor, state: Any, g: Tensor, h: Mapping[str, Tensor], step: int, nesterov: bool) -> tuple[Tensor, Any]:
    g = g + h.get("weight_decay", 0.0) * w
    velocity = h.get("momentum", 0.0) * state[0] + g
    return w - h["lr"] * (g + h["momentum"] * velocity if nesterov else velocity), (velocity, state[1])


def adam(w: Tensor, state: Any, g: Tensor, h: Mapping[str, Tensor], step: int, nesterov: bool) -> tuple[Tensor, Any]:
    without = {**h, "weight_decay": torch.zeros(())}
    return adamw(w, state, g + h["weight_decay"] * w, without, step, nesterov)


def adamw(w: Tensor, state: Any, g: Tensor, h: Mapping[str, Tensor], step: int, nesterov: bool) -> tuple[Tensor, Any]:
    first, second = h["beta1"] * state[0] + (1 - h["beta1"]) * g, h["beta2"] * state[1] + (1 - h["beta2"]) * g**2
    corrected = (second / (1 - h["beta2"] ** step)).sqrt()
    w = w - h["lr"] * h["weight_decay"] * w
    return w - h["lr"] * first / (1 - h["beta1"] ** step) / (corrected + h["eps"]), (first, second)


UPDATES = {"sgd": sgd, "adam": adam, "adamw": adamw}


def unrolled_hypergradients(task: TensorTask, buckets: Buckets, horizon: int, rules: Rules = Rules()) -> list[float]:
    """Reverse mode through the whole unrolled run [K]."""
    values = {name: torch.tensor(row, dtype=torch.float64, requires_grad=True) for name, row in buckets.items()}
    gradients = torch.autograd.grad(unrolled_loss(task, values, horizon, rules, graph=True), list(values.values()))
    return torch.cat([gradient.flatten() for gradient in gradients]).tolist()


def central_differences(task: TensorTask, buckets: Buckets, horizon: int, rules: Rules = Rules()) -> list[float]:
    """dL_val/dλ [K] without any derivative but the gradient of training."""

    def loss_at(name: str, bucket: int, shift: float) -> float:
        values = {key: torch.tensor(row, dtype=torch.float64) for key, row in buckets.items()}
        values[name][bucket] += shift
        return unrolled_loss(task, values, horizon, rules).item()

    def difference(name: str, bucket: int) -> float:
        value = buckets[name][bucket]
        h = 1e-5 * min(value, 1 - value)  # what acts is 1 − beta
        return (loss_at(name, bucket, h) - loss_at(name, bucket, -h)) / (2 * h)

    return [difference(name, bucket) for name, row in buckets.items() for bucket in range(len(row))]


def errors(found: list[float], reference: list[float], buckets: Buckets) -> dict[str, float]:
    """The relative error of each hyperparameter's buckets: none hides behind a larger one."""
    sizes = [len(row) for row in buckets.values()]
    rows = zip(*(torch.tensor(part, dtype=torch.float64).split(sizes) for part in (found, reference)), strict=True)
    return {name: relative_error(*row) for name, row in zip(buckets, rows, strict=True)}
