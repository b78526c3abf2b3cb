"""Whether an optimizer of a user's own keeps to the protocol: tried on a few numbers before any training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp, vmap
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from fds_dist.common.faults import Fault, UserError, user_code
from fds_dist.common.flat import FlatLayout
from fds_dist.tangents.optimizers.protocol import InnerOptimizer, PerWeight, bound, needs_layout, same_for_all

FEW = FlatLayout(("matrix", "bias"), (torch.Size((3, 2)), torch.Size((3,))))
"""The weights on which one is tried that does not ask for the network's."""

WARM_UP = 3
"""Steps after which the state is no longer special."""

NUDGE = 1e-6
CLOSE = 1e-4
"""Of the derivative against central differences: truncation is about `NUDGE`², rounding 1e-16/`NUDGE`; a value that is
cut off makes more of a difference."""


def check_optimizer(
    optimizer: InnerOptimizer, layout: FlatLayout, split: bool = False, grouped: bool = False, key: str = ""
) -> None:
    """Tries a user's optimizer in float64.

    Args:
        layout: of the network's weights, for an optimizer with `bind`; others are tried on a few numbers.
        split: whether ranks keep columns of the weights each.
        grouped: whether hyperparameters have values per parameter group.
        key: where the config names the optimizer.

    Raises:
        UserError: it breaks the protocol; says where.
    """
    if faults := list(_default_faults(optimizer, key)):
        raise UserError(faults)
    layout = layout if needs_layout(optimizer) else FEW
    with user_code(key, f"{optimizer.name}: bind(layout)"):
        rule = bound(optimizer, layout)
    trial = _Trial(rule, layout.size, key)
    trial.refuse_wrong_state()
    trial.refuse_impure_update()
    trial.refuse_wrong_derivatives()
    if split and not needs_layout(optimizer):
        trial.refuse_coupled_weights()
    if grouped:
        trial.refuse_without_groups()


def _default_faults(optimizer: InnerOptimizer, key: str) -> Iterator[Fault]:
    for name, value in optimizer.defaults.items():
        if not isinstance(name, str) or not name.isidentifier():
            yield Fault(key, f"defaults has the name {name!r}", "names like lr or beta1")
        elif isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            yield Fault(key, f"the default of {name} is {value!r}", "a finite number")
    if "lr" not in optimizer.defaults:
        yield Fault(key, f"{optimizer.name} has no lr among its defaults", "a learning rate of that name")


@dataclass
class _Trial:
    """An optimizer and the numbers on which it is tried."""

    rule: InnerOptimizer
    size: int
    key: str

    def __post_init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)
        self.weights = self.random()
        self.h = {name: torch.tensor(float(value or 0.1)).double() for name, value in self.rule.defaults.items()}

    def random(self) -> Tensor:
        return torch.randn(self.size, generator=self._generator, dtype=torch.float64)

    def fault(self, problem: str, expected: str) -> UserError:
        return UserError(Fault(self.key, f"{self.rule.name}: {problem}", expected))

    def init(self, weights: Tensor) -> Any:
        with user_code(self.key, f"{self.rule.name}: init(weights)"):
            return self.rule.init(weights)

    def update(self, *arguments: Any, per_weight: PerWeight = same_for_all) -> tuple[Tensor, Any]:
        """`update` with (weights, state, gradient, h)."""
        with user_code(self.key, f"{self.rule.name}: update(weights, state, gradient, h, per_weight)"):
            weights, state, gradient, h = arguments
            return self.rule.update(weights, state, gradient, h, per_weight)

    def refuse_wrong_state(self) -> None:
        """Refuses a state, before or after a step, that is no pytree of tensors with the right shapes and dtype."""
        state = self.init(self.weights)
        leaves, _ = tree_flatten(state)
        for leaf in leaves:
            if not isinstance(leaf, Tensor):
                raise self.fault(f"init(weights) gave a state with a {type(leaf).__name__}", "tensors alone")
            if leaf.dtype != self.weights.dtype or tuple(leaf.shape) not in ((), (self.size,)):
                kind = f"{list(leaf.shape)} {str(leaf.dtype).removeprefix('torch.')}"
                raise self.fault(f"init(weights) gave a state with {kind}", "[] or the weights' shape, and their dtype")
        result = self.update(self.weights, state, self.random(), self.h)
        if not isinstance(result, tuple) or len(result) != 2:
            raise self.fault(f"update returned a {type(result).__name__}", "(new weights, new state)")
        new_leaves, new_structure = tree_flatten(result)
        if new_structure != tree_flatten((self.weights, state))[1]:
            raise self.fault("update returned a state of another structure than init", "the same structure")
        for new, old in zip(new_leaves, (self.weights, *leaves), strict=True):
            if not isinstance(new, Tensor) or (new.shape, new.dtype) != (old.shape, old.dtype):
                kind = list(new.shape) if isinstance(new, Tensor) else type(new).__name__
                raise self.fault(f"update made {kind} of {list(old.shape)}", "the shapes and dtypes that it was given")

    def refuse_impure_update(self) -> None:
        """Refuses an update that writes into its arguments, or that gives other numbers the second time."""
        arguments = (self.weights, self.init(self.weights), self.random(), self.h)
        copies = tree_map(torch.clone, arguments)
        results = [tree_flatten(self.update(*tree_map(torch.clone, copies)))[0] for _ in range(2)]
        if not all(map(torch.equal, *results)):
            raise self.fault("update gives other numbers for the same arguments", "a function of its arguments alone")
        self.update(*arguments)
        if not all(map(torch.equal, tree_flatten(arguments)[0], tree_flatten(copies)[0])):
            raise self.fault("update writes into its arguments", "new tensors: no operations in place")

    def refuse_wrong_derivatives(self) -> None:
        """Refuses an update whose forward-mode derivative fails, is not finite at zeros or is not its difference."""
        weights, state = self.weights, self.init(self.weights)
        zeros = torch.zeros(self.size, dtype=torch.float64)
        at_zero = self._pushed((weights, state, zeros, self.h))
        if not all(bool(part.isfinite().all()) for part in at_zero[1]):
            expected = "finite derivatives: fds_dist.tangents.optimizers.safe_sqrt for a root of 0"
            raise self.fault("a derivative of update is not finite where gradient and state are 0", expected)
        for _ in range(WARM_UP):
            weights, state = self.update(weights, state, self.random(), self.h)
        function, derivative, tensors, directions = self._pushed((weights, state, self.random(), self.h))
        ahead, behind = (
            function(*(tensor + sign * NUDGE * way for tensor, way in zip(tensors, directions, strict=True)))
            for sign in (1, -1)
        )
        for computed, plus, minus in zip(derivative, ahead, behind, strict=True):
            difference = (plus - minus) / (2 * NUDGE)
            if float((computed - difference).norm()) > CLOSE * float(1 + difference.norm()):
                expected = "differentiable operations alone, no item(), detach() or torch.no_grad()"
                raise self.fault("the derivative of update is not that of its values", expected)

    def refuse_coupled_weights(self) -> None:
        """Refuses an update of columns that is not the columns of the update: ranks of `mesh.data` have some each."""
        half, gradient = self.size // 2, self.random()
        state = self.init(self.weights)
        whole, state = self.update(self.weights, state, gradient, self.h)
        whole, _ = self.update(whole, state, gradient, self.h)
        part, state = self.update(self.weights[:half], self.init(self.weights[:half]), gradient[:half], self.h)
        part, _ = self.update(part, state, gradient[:half], self.h)
        if not torch.allclose(part, whole[:half], rtol=1e-10, atol=1e-12):  # rounding
            problem = f"{self.rule.name} moves a weight by what others are, and ranks along mesh.data have some each"
            raise UserError(Fault("mesh.data", problem, "1 with this optimizer"))

    def refuse_without_groups(self) -> None:
        """Refuses an update whose values per group, [G], do not go through `per_weight`."""
        group = torch.arange(self.size) % 2
        pairs = {name: torch.stack([value, 0.5 * value]) for name, value in self.h.items()}

        def per_weight(value: Tensor) -> Tensor:
            return value if value.dim() == 0 else value[group]

        gradient, state = self.random(), self.init(self.weights)
        try:
            grouped, _ = self.update(self.weights, state, gradient, pairs, per_weight=per_weight)
        except UserError as error:
            text = "inner.groups: its update takes no values per group"
            raise self.fault(text, "per_weight(value) around what a value is made into") from error
        for place in range(2):
            alone, _ = self.update(self.weights, state, gradient, {name: pair[place] for name, pair in pairs.items()})
            if not needs_layout(self.rule) and not torch.allclose(grouped[group == place], alone[group == place]):
                raise self.fault("with values per group its update is not that of each group", "per_weight(value)")

    def _pushed(
        self, arguments: tuple[Any, ...]
    ) -> tuple[Callable[..., list[Tensor]], list[Tensor], list[Tensor], list[Tensor]]:
        """The update as a function of a list of tensors, its derivative along a direction, that list, the direction."""
        tensors, structure = tree_flatten(arguments)

        def function(*tensors: Tensor) -> list[Tensor]:
            weights, state, gradient, h = tree_unflatten(list(tensors), structure)
            return tree_flatten(self.rule.update(weights, state, gradient, h, same_for_all))[0]

        def push(*directions: Tensor) -> list[Tensor]:
            return jvp(function, tuple(tensors), directions)[1]

        sizes = [(1 - tensor).abs().minimum(tensor.abs()) if tensor.dim() == 0 else 1.0 for tensor in tensors]
        shares = [torch.rand((2, *t.shape), generator=self._generator, dtype=torch.float64) + 0.5 for t in tensors]
        directions = [size * share for size, share in zip(sizes, shares, strict=True)]
        with user_code(self.key, f"{self.rule.name}: the derivative of update (torch.func.jvp under vmap)"):
            derivative = [part[0] for part in vmap(push)(*directions)]
        return function, derivative, tensors, [direction[0] for direction in directions]
