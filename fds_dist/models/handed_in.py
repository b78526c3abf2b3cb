"""A network of the user's own: a copy of it for each outer step, with its weights or with new ones.

The engine takes a network over (it moves it and puts views of one vector in the place of its parameters), and a
function may hand out the same one twice, so the user's own is never given away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fds_dist.common.batch import call, map_tensors
from fds_dist.common.faults import Fault, UserError, user_code
from fds_dist.common.flat import trainable_parameters
from fds_dist.common.kinds import one_of
from fds_dist.common.modules import Modes, independent_copy
from fds_dist.common.options import kind_faults
from fds_dist.common.randomness import seeded
from fds_dist.common.words import few
from fds_dist.models.refusals import module_faults, uncompile_parts, unregistered, unwrapped

KEEP, REDRAW = "keep", "redraw"
Start = Annotated[str, one_of((KEEP, REDRAW))]
"""Which weights a network of the user's own starts from."""


def checked_start(init: object) -> str:
    """`init`, if it is `KEEP` or `REDRAW`.

    Raises:
        UserError: it is neither; names `model.init`.
    """
    if faults := kind_faults(Start, init, "model.init"):
        raise UserError(faults)
    return str(init)


SAME_START = (
    "every outer step starts from the weights that the network was handed in with (model.init=redraw: new ones)"
)


@dataclass(frozen=True)
class HandedIn:
    """seed → network.

    Args:
        make: seed → the user's module, as a rule the same one or a new one.
        init: `KEEP` or `REDRAW` (see `redraw`).
        inputs: gives the inputs of a batch, for a module that learns its shapes from them.
    """

    make: Callable[[int], object]
    init: str
    inputs: Callable[[], Any]

    def __call__(self, seed: int) -> nn.Module:
        """A network that shares nothing with the user's own; the same one for the same seed.

        Raises:
            UserError: the user's code fails, or the module cannot be trained here as it would be in plain PyTorch.
        """
        return self._drawn(seed)[0]

    def remarks(self) -> list[str]:
        """What a person should know about the weights that outer steps start from, and about what is not trained.

        Raises:
            UserError: as a call; or two calls with the same seed give different networks.
        """
        (first, kept), again, other = self._drawn(0), self(0), self(1)
        if different := _difference(first, again):
            problem = f"building the network twice with the same seed gave different values of {different}"
            expected = "random numbers that depend on the seed, or on the global generators of torch, numpy and random"
            raise UserError(Fault("model", problem, expected))
        remarks = [SAME_START] if self.init == KEEP and not _difference(first, other) else []
        if kept:
            remarks.append(f"model.init=redraw: no reset_parameters draws {few(kept)}: the values stay")
        if resting := Modes(first).at_rest():
            remarks.append(f"stays in evaluation mode, as it was handed in (module.train() ends that): {few(resting)}")
        if hidden := unregistered(first):
            remarks.append(f"parameters in plain Python containers are not trained: {few(hidden)}")
        return remarks

    def _drawn(self, seed: int) -> tuple[nn.Module, list[str]]:
        """The network, and the names of the trained parameters that `REDRAW` could not draw."""
        with seeded(seed):
            module = self._copied(seed)
            if any(map(is_lazy, [*module.parameters(), *module.buffers()])):
                self._initialize(module)
            kept = redraw(module) if self.init == REDRAW else []
        try:
            trainable_parameters(module)
        except ValueError as error:
            raise UserError(Fault("model", str(error), "parameters with requires_grad=True to train")) from error
        return module, kept

    def _copied(self, seed: int) -> nn.Module:
        with user_code("model", "building the network"):
            module = self.make(seed)
        if not isinstance(module, nn.Module):
            raise UserError(Fault("model", f"build_model returned a {type(module).__name__}", "a torch.nn.Module"))
        module = unwrapped(module)
        if fault := next(module_faults(module), None):  # the others are mostly the same, of other parameters
            raise UserError(fault)
        try:
            copied = independent_copy(module)
        except Exception as error:
            problem = f"{type(module).__name__} cannot be copied: {error}"
            raise UserError(Fault("model", problem, "a module that copy.deepcopy can copy")) from error
        uncompile_parts(copied)
        return copied

    def _initialize(self, module: nn.Module) -> None:
        """Makes the parameters of lazy parts, which read their shapes from the first inputs that they meet.

        In evaluation mode, so that these inputs leave running statistics alone.
        """
        modes = {part: part.training for part in module.modules()}
        device = next(tensor.device for tensor in [*module.parameters(), *module.buffers()] if is_lazy(tensor))

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, torch.get_default_dtype() if tensor.is_floating_point() else tensor.dtype)

        inputs = map_tensors(moved, self.inputs())
        module.eval()
        with user_code("model", "the first call of a lazy network"), torch.no_grad():
            call(module, inputs)
        for part, mode in modes.items():
            part.training = mode
        if lazy := [name for name, parameter in module.named_parameters() if is_lazy(parameter)]:
            problem = f"{few(lazy)} still have no shape after a first batch"
            raise UserError(Fault("model", problem, "a network that has been called once"))


def redraw(module: nn.Module) -> list[str]:
    """Draws new weights in place, from torch's global generators, by `reset_parameters` of the parts.

    Inner parts come first, as constructors go. Frozen parameters, and parts whose parameters are all frozen, stay as
    they are.

    Returns:
        Names of the trained parameters that no part has drawn.

    Raises:
        UserError: that is all of them.
    """
    before = dict(module.named_parameters())
    values = {name: parameter.detach().clone() for name, parameter in before.items()}
    versions = {name: parameter._version for name, parameter in before.items()}
    frozen = {name for name, parameter in before.items() if not parameter.requires_grad}
    with torch.no_grad(), user_code("model", "reset_parameters"):
        for part in reversed(list(module.modules())):
            reset = getattr(part, "reset_parameters", getattr(part, "_reset_parameters", None))
            parameters = list(part.parameters())
            if callable(reset) and (not parameters or any(parameter.requires_grad for parameter in parameters)):
                reset()
        kept = []
        for name, parameter in module.named_parameters():
            if name in frozen:
                parameter.requires_grad_(False).copy_(values[name])
            elif parameter is before.get(name) and parameter._version == versions[name]:
                kept += [name] if torch.equal(parameter, values[name]) else []
    if len(kept) == len(before) - len(frozen):
        problem = f"no part of {type(module).__name__} has a reset_parameters that draws weights"
        raise UserError(Fault("model.init", problem, "keep, or a function of the seed that builds the network"))
    return kept


def _difference(left: nn.Module, right: nn.Module) -> str:
    """The first parameter or buffer in which two networks differ; "" where there is none."""
    ours, theirs = (dict(_tensors(module)) for module in (left, right))
    for name in {**ours, **theirs}:
        if name not in ours or name not in theirs or not _same(ours[name], theirs[name]):
            return name
    return ""


def _same(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and bool(torch.allclose(left, right, rtol=0, atol=0, equal_nan=True))


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()
