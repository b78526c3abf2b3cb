"""An inner optimizer as plain PyTorch has it: a class of `torch.optim` where there is one, else its pure functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from fds_dist.common.flat import FlatLayout, trainable_parameters
from fds_dist.common.optimizers import BUILT_IN, torch_arguments
from fds_dist.schedule.driver import parameter_groups
from fds_dist.schedule.schedule import Schedule
from fds_dist.tangents.optimizers.plain_schedule_free import PlainScheduleFree
from fds_dist.tangents.optimizers.protocol import InnerOptimizer, bound
from fds_dist.tangents.optimizers.registry import optimizer_of
from fds_dist.tangents.optimizers.schedule_free import ScheduleFree
from fds_dist.tangents.step import WeightGroups


def make_optimizer(schedule: Schedule, module: nn.Module) -> Optimizer:
    """The optimizer that `schedule` was learned for, on the trained parameters of `module`.

    ```python
    schedule = fds_dist.load_schedule("runs/digits")
    optimizer = fds_dist.make_optimizer(schedule, model)
    driver = schedule.attach(optimizer, horizon=epochs * len(loader), fixed=True)
    ```

    It is the class of `torch.optim`, where that has the formula. For a schedule-free one it is a `PlainScheduleFree`,
    for lion, lamb, muon and an optimizer of a user's own a `PureOptimizer`, which steps by the formula of the search.

    Raises:
        UserError: the schedule names no optimizer, or one that cannot be made, or its parameter groups do not fit the
            parameters of `module`.
    """
    return torch_optimizer(optimizer_of(schedule.optimizer), module, parameter_groups(module, schedule))


def torch_optimizer(optimizer: InnerOptimizer, module: nn.Module, groups: list[dict[str, Any]]) -> Optimizer:
    """The optimizer as PyTorch has it with the formula of `optimizer`, for a driver that sets every value.

    Args:
        groups: the trained parameters of `module`, as `fds_dist.schedule.driver.parameter_groups` returns them.
    """
    if isinstance(optimizer, ScheduleFree):
        return PlainScheduleFree(optimizer, groups)
    facts = BUILT_IN.get(optimizer.name)
    if facts is None or not facts.torch_class:
        return PureOptimizer(optimizer, module, groups)
    arguments = torch_arguments({"name": optimizer.name, **optimizer.switches})
    return getattr(torch.optim, facts.torch_class)(groups, lr=0.0, **arguments)


class PureOptimizer(Optimizer):
    """Steps the trained parameters of a module by the pure `update` of an inner optimizer.

    Each parameter group has the hyperparameters by their own names (`beta1`, not `betas`). A parameter without a
    gradient counts as one whose gradient is 0. The state, which belongs to all parameters, is kept under the first.
    """

    def __init__(self, optimizer: InnerOptimizer, module: nn.Module, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, dict(optimizer.defaults))
        parameters = trainable_parameters(module)
        self.formula = optimizer.name
        """What a schedule for this optimizer was learned for."""
        self._names = tuple(optimizer.defaults)
        self._parameters = list(parameters.values())
        self._layout = FlatLayout.of(parameters)
        self._rule = bound(optimizer, self._layout, grouped=len(groups) > 1)
        self._structure: TreeSpec | None = None
        place = {id(parameter): i for i, group in enumerate(self.param_groups) for parameter in group["params"]}
        of_parameter = torch.tensor([place[id(parameter)] for parameter in self._parameters], dtype=torch.int32)
        of_weight = of_parameter.repeat_interleave(torch.tensor(self._layout.sizes))
        self._groups = WeightGroups(tuple(map(str, range(len(groups)))), of_weight.to(self._parameters[0].device))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step; see `torch.optim.Optimizer.step`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        weights = torch.cat([parameter.flatten() for parameter in self._parameters])
        gradient = torch.cat([_gradient(parameter).flatten() for parameter in self._parameters])
        stored = self.state[self._parameters[0]]
        if self._structure is None:
            leaves, self._structure = tree_flatten(self._rule.init(weights))
            for index, leaf in enumerate(leaves):
                stored.setdefault(str(index), leaf)
        keys = list(map(str, range(self._structure.num_leaves)))
        state = tree_unflatten([stored[key] for key in keys], self._structure)
        weights, state = self._rule.update(weights, state, gradient, self._values(weights), self._groups.per_weight)
        stored.update(zip(keys, tree_flatten(state)[0], strict=True))
        for parameter, view in zip(self._parameters, self._layout.views(weights).values(), strict=True):
            parameter.copy_(view)
        return loss

    def _values(self, like: Tensor) -> dict[str, Tensor]:
        """The hyperparameters: [] where all groups have the same value, else [G]."""
        rows = [[float(group[name]) for group in self.param_groups] for name in self._names]
        table = like.new_tensor(rows)  # [H, G], in one copy to the device
        pairs = zip(table.unbind(), rows, strict=True)
        return dict(zip(self._names, (values[0] if len({*row}) == 1 else values for values, row in pairs), strict=True))


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
