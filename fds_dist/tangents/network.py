"""A network as a function of its flat weights, and its training loss as a function that can be differentiated twice.

Shapes: D = number of weights, B = batch size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from fds_dist.common.batch import Share
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.flat import FlatLayout, trainable_parameters
from fds_dist.tangents.batch_norm import RunningStatistics, Statistics
from fds_dist.tangents.second_derivatives import write_out


def differentiate(outputs: Any, inputs: Any, directions: Any = None, **options: Any) -> tuple[Tensor, ...]:
    """`torch.autograd.grad` of what a `Network` gave, on the attention kernel of its forward pass.

    Activation checkpointing runs parts of the forward pass again in here, and must meet the same kernel.
    """
    with sdpa_kernel(SDPBackend.MATH):
        return torch.autograd.grad(outputs, inputs, directions, **options)


class Network:
    """A module called with flat weights [D]. It owns the module, whose parameters become views of the last weights.

    The views stay in place after a call, unlike with `torch.func.functional_call`: activation checkpointing runs
    parts of the forward pass again during the backward pass, and would silently do so with other weights.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
        self.module = module.to(device=device, dtype=dtype)
        self.dtype, self.device = dtype, device
        parameters = trainable_parameters(module)
        self.layout = FlatLayout.of(parameters)
        self.initial_weights = self.layout.flatten(parameters, dtype, device)
        write_out(module)
        self.statistics = RunningStatistics(module)
        self.statistics_order: list[int] = []
        names = {id(parameter): name for name, parameter in parameters.items()}
        self._slots = [
            (owner, local_name, names[id(parameter)])
            for owner in module.modules()
            for local_name, parameter in owner._parameters.items()
            if id(parameter) in names
        ]
        self._recurrent = [owner for owner in module.modules() if isinstance(owner, nn.RNNBase)]

    @property
    def share(self) -> Share:
        """The part of each batch that the coming calls see."""
        return self.statistics.share

    @share.setter
    def share(self, share: Share) -> None:
        self.statistics.share = share

    def _install(self, weights: Tensor) -> None:
        views = self.layout.views(weights)
        for owner, local_name, name in self._slots:
            owner._parameters[local_name] = views[name]  # type: ignore[assignment]
        for owner in self._recurrent:  # these keep a second list of their weights
            owner._flat_weights = [getattr(owner, name) for name in owner._flat_weights_names]

    def train(self) -> None:
        """Training mode: dropout on, batch-norm on batch statistics."""
        self.module.train()

    def evaluate(self, batch_norm: str = "running") -> None:
        """Evaluation mode; with `batch_norm="batch"` batch-norm still uses the statistics of its batch."""
        self.module.eval()
        if batch_norm == "batch":
            for layer in self.module.modules():
                if isinstance(layer, _BatchNorm):
                    layer.training = True

    def __call__(self, weights: Tensor, inputs: Tensor) -> tuple[Tensor, Statistics]:
        """The output for `inputs` [B, ...] at `weights` [D], and what batch-norm saw.

        Attention runs on the math kernel: the fused ones have no second derivative.
        """
        self._install(weights)
        with self.statistics.recorded() as seen, sdpa_kernel(SDPBackend.MATH):
            output = self.module(inputs)
        self.statistics_order = [index for index, _, _ in seen]
        return output, tuple((mean, variance) for _, mean, variance in seen)

    def seed(self, seed: int) -> None:
        """Seeds the generators that the forward pass draws from (dropout).

        `torch.manual_seed` would also visit the devices that are not in use, at 0.3 ms a call.
        """
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def update_statistics(self, statistics: Statistics) -> None:
        """Applies what the last call saw to the running statistics."""
        self.statistics.update(self.statistics_order, statistics)

    def cast(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The batch on this network's device, floating-point parts in its dtype."""
        inputs, targets = (self._cast(part) for part in batch)
        return inputs, targets

    def _cast(self, part: Tensor) -> Tensor:
        dtype = self.dtype if part.is_floating_point() else part.dtype
        return part.to(device=self.device, dtype=dtype, non_blocking=True)


@dataclass(frozen=True)
class TrainingLoss:
    """L(w, θ; batch), with θ [P] the hyperparameters that live inside the loss, named by `names`."""

    network: Network
    loss: Callable[..., Tensor]
    names: tuple[str, ...] = ()

    def __call__(self, weights: Tensor, theta: Tensor, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Statistics]:
        """The scalar mean loss of `batch` times the network's share of the whole one, and what batch-norm saw.

        Summed over the shares it is the mean loss of the whole batch.

        Raises:
            UserError: the task's loss did not return one number.
        """
        inputs, targets = batch
        output, statistics = self.network(weights, inputs)
        extra = (dict(zip(self.names, theta.unbind(), strict=True)),) if self.names else ()
        loss = self.loss(output, targets, *extra)
        if not isinstance(loss, Tensor) or loss.shape != ():
            kind = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            problem = f"loss(output, target) returned {kind}"
            raise UserError(Fault("task", problem, "a scalar tensor, the mean over the batch"))
        return loss * self.network.share.fraction, statistics
