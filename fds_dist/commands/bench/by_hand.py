"""What the figures are held against: training steps in plain PyTorch, and tangents the way the paper has them.

Shapes: D = weights, k = tangents.
"""

from __future__ import annotations

from itertools import cycle

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from fds_dist.common.flat import trainable_parameters
from fds_dist.inner.plain_training import first_steps
from fds_dist.inner.problem import Problem
from fds_dist.schedule.driver import parameter_groups
from fds_dist.tangents.optimizers.plain import torch_optimizer

BATCHES = 4
"""Batches that the steps go through in turn."""


class PlainStep:
    """A training step as a user writes it: `loss.backward()` and `torch.optim`, at the start values."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.training = problem, first_steps(problem, BATCHES)
        self.batches = cycle([self.training.cast(batch) for batch in self.training.train])
        self.module: nn.Module = self.training.module()
        self.schedule = problem.space.schedule(problem.trial_values(), 1, problem.optimizer_info)
        groups = parameter_groups(self.module, self.schedule)
        self.optimizer = torch_optimizer(problem.optimizer, self.module, groups)
        self.driver = self.schedule.attach(self.optimizer, horizon=1, fixed=True)

    def loss(self) -> Tensor:
        """The training loss of the next batch."""
        extra = {name: self.driver.values[name] for name in self.problem.loss_hyperparameters}
        return self.training.loss(self.module, next(self.batches), extra, seed=0)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        self.loss().backward()
        if self.problem.clip_gradient is not None:
            nn.utils.clip_grad_value_(self.module.parameters(), self.problem.clip_gradient)
        if self.problem.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.module.parameters(), self.problem.clip_norm)
        self.optimizer.step()


class PaperStep(PlainStep):
    """A step with `tangents` tangents by SGD's own formulas, and one double-backward pass for each product H·Z.

    Equation 3 of FDS (arXiv 2007.07869): v ← μv + g + ξw, C ← μC + HZ + ξZ + [μ: v | ξ: w], Z ← Z − αC − [α: v],
    w ← w − αv. The rows of Z [k, D] belong to lr α, momentum μ and weight decay ξ in turn. No clipping.
    """

    def __init__(self, problem: Problem, tangents: int) -> None:
        super().__init__(problem)
        self.parameters = list(trainable_parameters(self.module).values())
        self.weights = parameters_to_vector(self.parameters).detach()
        at_start = self.schedule.at(0)
        self.values = [float(at_start[name]) for name in ("lr", "momentum", "weight_decay")]  # type: ignore[arg-type]
        self.velocity = torch.zeros_like(self.weights)
        self.Z = self.weights.new_zeros(tangents, len(self.weights))
        self.C = torch.zeros_like(self.Z)

    @staticmethod
    def can_do(problem: Problem) -> bool:
        """Whether `problem` is the paper's: SGD with momentum, nothing learned inside the loss, no groups."""
        is_sgd = problem.optimizer.name == "sgd" and not any(problem.optimizer.switches.values())
        return is_sgd and not problem.groups and not problem.loss_hyperparameters and problem.accumulate == 1

    def __call__(self) -> None:
        lr, momentum, decay = self.values
        first = torch.autograd.grad(self.loss(), self.parameters, create_graph=True, materialize_grads=True)
        gradient = self._flat(first)
        products = torch.stack([self._product(gradient, row) for row in self.Z])
        with torch.no_grad():
            gradient, before = gradient.detach(), self.velocity
            self.C = momentum * self.C + products + decay * self.Z
            self.C[1::3] += before
            self.C[2::3] += self.weights
            self.velocity = momentum * before + gradient + decay * self.weights
            self.Z = self.Z - lr * self.C
            self.Z[0::3] -= self.velocity
            self.weights = self.weights - lr * self.velocity
            vector_to_parameters(self.weights, self.parameters)

    def _product(self, gradient: Tensor, row: Tensor) -> Tensor:
        """H·row [D]."""
        return self._flat(
            torch.autograd.grad(gradient, self.parameters, row, retain_graph=True, materialize_grads=True)
        )

    @staticmethod
    def _flat(tensors: tuple[Tensor, ...]) -> Tensor:
        return torch.cat([tensor.flatten() for tensor in tensors])
