"""Schedule-free SGD and AdamW as plain PyTorch has optimizers: parameter by parameter, in place.

Source: Defazio et al., "The road less scheduled", arXiv 2405.15682. It shares no code with the pure functions of
`fds_dist.tangents.optimizers.schedule_free`, and so bears witness against them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fds_dist.tangents.optimizers.schedule_free import ScheduleFree


class PlainScheduleFree(Optimizer):
    """Steps parameters that hold y, where gradients are taken; `eval()` puts the average x in them, `train()` y again.

    ```python
    optimizer.eval()
    loss = validate(model)      # of x, which is what is to be used and saved
    optimizer.train()
    ```

    Each parameter group has the hyperparameters by their own names (`beta1`, not `betas`). Running statistics of
    batch-norm belong to y: those of x take forward passes in training mode after `eval()`.
    """

    def __init__(self, optimizer: ScheduleFree, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, dict(optimizer.defaults))
        self.formula = optimizer.name
        """What a schedule for this optimizer was learned for."""
        self._adaptive, self._r, self._power = optimizer.adaptive, optimizer.r, optimizer.weight_lr_power
        self._interpolation = "beta1" if optimizer.adaptive else "momentum"
        self._trained: dict[nn.Parameter, Tensor] = {}
        """y of each parameter that holds x."""

    @torch.no_grad()
    def eval(self) -> None:
        """Puts x in the parameters, to validate, test or save them."""
        if self._trained:
            return
        for group, parameter in self._parameters():
            if state := self.state[parameter]:
                self._trained[parameter] = parameter.clone()
                parameter.copy_(self._average(group, parameter, state["z"]))

    @torch.no_grad()
    def train(self) -> None:
        """Puts y in the parameters again, with the same bits."""
        for parameter, weights in self._trained.items():
            parameter.copy_(weights)
        self._trained.clear()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step; see `torch.optim.Optimizer.step`.

        Raises:
            RuntimeError: the parameters hold x.
        """
        if self._trained:
            raise RuntimeError("the parameters hold averages: call optimizer.train() before a step")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group, parameter in self._parameters():
            if parameter.grad is not None:
                self._step(group, parameter, parameter.grad)
        return loss

    def _parameters(self) -> Iterator[tuple[dict[str, Any], nn.Parameter]]:
        """Each parameter, after its group."""
        return ((group, parameter) for group in self.param_groups for parameter in group["params"])

    def _average(self, group: dict[str, Any], y: Tensor, z: Tensor) -> Tensor:
        """x, from y = (1 − β)z + βx."""
        beta = float(group[self._interpolation])
        return (y - (1 - beta) * z) / beta

    def _step(self, group: dict[str, Any], parameter: nn.Parameter, gradient: Tensor) -> None:
        state, lr, beta = self.state[parameter], float(group["lr"]), float(group[self._interpolation])
        if not state:
            zero = parameter.new_zeros(())
            state.update(z=parameter.clone(), steps=zero.clone(), highest=zero.clone(), total=zero.clone())
            state.update({"second_moment": torch.zeros_like(parameter)} if self._adaptive else {})
        state["steps"] += 1
        x = self._average(group, parameter, state["z"])
        if self._adaptive:
            second, share = state["second_moment"], 1 - float(group["beta2"])
            second.mul_(1 - share).add_(share * gradient**2)
            gradient = gradient / ((second / (1 - (1 - share) ** state["steps"])).sqrt() + float(group["eps"]))
        state["z"].sub_(lr * (gradient + float(group["weight_decay"]) * parameter))
        state["highest"].clamp_(min=lr)
        weight = state["steps"] ** self._r * state["highest"] ** self._power
        state["total"] += weight
        x += (weight / state["total"]).nan_to_num(0.0) * (state["z"] - x)  # 0/0: the learning rate was 0 so far
        parameter.copy_((1 - beta) * state["z"] + beta * x)
