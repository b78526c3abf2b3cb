"""Shows an inner optimizer of one's own, pure `init` and `update`, whose schedules are learned and retrained with.

AdaBelief (arXiv 2010.07468): Adam whose second moment is that of the gradient's deviation from its mean.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

import fds_dist
from fds_dist.tangents.optimizers import safe_sqrt, same_for_all


class State(NamedTuple):
    mean: Tensor  # [D]
    variance: Tensor  # [D]
    steps: Tensor  # []


class AdaBelief:
    def __init__(self, lr: float = 1e-3) -> None:
        self.defaults = {"lr": lr, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}

    def init(self, weights):
        return State(torch.zeros_like(weights), torch.zeros_like(weights), weights.new_zeros(()))

    def update(self, weights, state, gradient, h, per_weight=same_for_all):
        """New tensors, by differentiable operations alone. `per_weight` spreads values of parameter groups."""
        steps = state.steps + 1
        mean = torch.lerp(state.mean, gradient, per_weight(1 - h["beta1"]))
        variance = torch.lerp(state.variance, (gradient - mean) ** 2, per_weight(1 - h["beta2"]))
        scale = safe_sqrt(variance / per_weight(1 - h["beta2"] ** steps)) + per_weight(h["eps"])
        step_size = per_weight(h["lr"] / (1 - h["beta1"] ** steps))
        return weights - step_size * mean / scale, State(mean, variance, steps)


if __name__ == "__main__":
    result = fds_dist.optimize(
        {
            "task": {"name": "digits"},
            "model": {"name": "mlp"},
            # In a module of one's own: "package.module:AdaBelief", by which retrain finds it again.
            "inner": {"optimizer": {"name": "own_optimizer:AdaBelief", "lr": 3e-3}, "steps": 60},
            "hyperparameters": {
                "lr": {"init": 3e-3, "buckets": 4, "step": 0.5},
                "beta1": {"init": 0.9, "step": 0.5},
            },
            "outer": {"steps": 4},
        }
    )
    print(result.schedule.values)
    retrained = fds_dist.retrain(result.run_dir, ["epochs=4"])
    print("test accuracy", retrained.results[0].final.test_accuracy)
