"""Fine-tuning: a network that starts from the weights in a file, with some of it frozen."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from fds_dist.common.faults import Fault, UserError, user_code
from fds_dist.common.flat import trainable_parameters
from fds_dist.common.kinds import Pattern, Text
from fds_dist.common.modules import Modes
from fds_dist.common.options import kind_faults
from fds_dist.common.paths import expand_path
from fds_dist.common.registry import nearest
from fds_dist.common.words import few
from fds_dist.models.handed_in import REDRAW, SAME_START

LISTED = 3
"""Names that a message lists."""


@dataclass(frozen=True)
class WeightsFile:
    """The tensors of a safetensors file, by their names in a network's `state_dict`."""

    path: Path
    tensors: Mapping[str, Tensor] = field(repr=False)
    digest: str
    """SHA-256 of the file."""
    exempt: str | None = None
    """A regular expression: what it matches among the names is neither read nor missed."""

    @classmethod
    def read(cls, path: Path, exempt: str | None = None) -> WeightsFile:
        """Reads the file into memory, once for all networks.

        Raises:
            UserError: there is no such file, or it is no safetensors file; names `model.weights`.
        """
        expected = "a file that safetensors.torch.save_file(model.state_dict(), FILE) wrote"
        try:
            content = path.read_bytes()
            tensors = dict(sorted(load(content).items()))
        except OSError as error:
            raise UserError(Fault("model.weights", f"{path}: {error.strerror}", expected)) from None
        except SafetensorError as error:
            raise UserError(Fault("model.weights", f"{path} is no safetensors file ({error})", expected)) from None
        return cls(path, tensors, hashlib.sha256(content).hexdigest(), exempt)

    def is_exempt(self, name: str) -> bool:
        """Whether the tensor `name` stays as the network has it."""
        return self.exempt is not None and re.search(self.exempt, name) is not None

    def load_into(self, module: nn.Module) -> None:
        """Puts the tensors in the place of the module's own, cast to their types.

        A tied parameter may be in the file under any of its names.

        Raises:
            UserError: names that are missing, not in the network, or of another shape; one fault for each kind.
        """
        state = {name: value for name, value in module.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
        tensors = {name: tensor for name, tensor in self.tensors.items() if not self.is_exempt(name)}
        others = {
            name: f"{name} ({_shape(tensors[name])} in the file, {_shape(tensor)} in the network)"
            for name, tensor in state.items()
            if name in tensors and tensors[name].shape != tensor.shape
        }
        with user_code("model.weights", f"load_state_dict of {type(module).__name__}"):
            fitting = {name: tensor for name, tensor in tensors.items() if name not in others}
            missing, unexpected = module.load_state_dict(fitting, strict=False)
        present = {id(state[name]) for name in tensors if name in state}  # a tied parameter under another of its names
        missing = [
            name for name in missing if name in state and id(state[name]) not in present and not self.is_exempt(name)
        ]
        exempting = "or model.weights_except with a regular expression that matches these names"
        faults = [
            Fault("model.weights", f"{self.path} {problem}: {few(names)}", f"{expected}, {exempting}")
            for names, problem, expected in (
                (_with_nearest(missing, unexpected), "lacks names that the network has", "all of the network's names"),
                (_with_nearest(unexpected, missing), "has names that the network lacks", "the network's names alone"),
                (list(others.values()), "has other shapes than the network", "the network's shapes"),
            )
            if names
        ]
        if faults:
            raise UserError(faults)


@dataclass(frozen=True)
class FineTuned:
    """seed → network: that of `build`, with the weights of a file and its frozen parts."""

    build: Callable[[int], nn.Module]
    weights: WeightsFile | None
    frozen: str | None
    """A regular expression: parameters and running statistics whose names it matches stay as they are."""

    def __call__(self, seed: int) -> nn.Module:
        """The network for `seed`.

        Raises:
            UserError: the file does not fit the network; nothing is left to train, or nothing is frozen.
        """
        module = self.build(seed)
        if self.weights is not None:
            self.weights.load_into(module)
        if self.frozen is not None:
            freeze(module, self.frozen)
        return module

    def remarks(self) -> list[str]:
        """What a person should know about the weights that outer steps start from, and about what is not trained.

        Raises:
            UserError: as a call; or whatever is wrong with the network as it was handed in.
        """
        remarks = list(getattr(self.build, "remarks", list)())
        module = self(0)
        if self.weights is not None:
            exempt = [name for name in module.state_dict() if self.weights.is_exempt(name)]
            but = f", but for {few(exempt)}" if exempt else ""
            start = f"every outer step starts from the weights in {self.weights.path}{but} (model.weights)"
            remarks = [start, *(remark for remark in remarks if remark != SAME_START)]
        if self.frozen is not None:
            trained, whole = (
                sum(parameter.numel() for parameter in parameters)
                for parameters in (trainable_parameters(module).values(), module.parameters())
            )
            remarks.append(f"{trained:,} of {whole:,} weights are trained, the others are frozen (model.freeze)")
        return remarks


def fine_tuned(
    build: Callable[[int], nn.Module], options: Mapping[str, Any], init: object
) -> Callable[[int], nn.Module]:
    """`build`, or a `FineTuned` where the options ask for one.

    Args:
        options: the keys `weights`, `weights_except` and `freeze` of the section `model`, null where left out.
        init: its key `init`.

    Raises:
        UserError: an option is of the wrong kind, contradicts another one, or names a file that cannot be read.
    """
    weights, exempt, frozen = (options.get(key) for key in ("weights", "weights_except", "freeze"))
    kinds = {"weights": (Text, weights), "weights_except": (Pattern, exempt), "freeze": (Pattern, frozen)}
    faults = [
        fault
        for key, (kind, value) in kinds.items()
        if value is not None
        for fault in kind_faults(kind, value, f"model.{key}")
    ]
    if exempt is not None and weights is None:
        faults.append(Fault("model.weights_except", "has no effect without model.weights", "both, or neither"))
    if init == REDRAW and weights is not None and exempt is None:
        problem = "redraw has no effect: every weight comes from model.weights"
        faults.append(Fault("model.init", problem, "model.weights_except with what is to be drawn, or no init"))
    if faults:
        raise UserError(faults)
    if weights is None and frozen is None:
        return build
    file = None if weights is None else WeightsFile.read(expand_path(weights, "model.weights"), exempt)
    return FineTuned(build, file, frozen)


def freeze(module: nn.Module, pattern: str) -> None:
    """Freezes, in place, the parameters and running statistics whose qualified names `pattern` matches.

    Parameters no longer require a gradient. Layers with such statistics rest in evaluation mode.

    Raises:
        UserError: the pattern matches no parameter, or all that are trained.
    """
    names = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    matches = [name for name in names if re.search(pattern, name)]
    if not matches:
        problem = f"{pattern!r} matches no parameter of {type(module).__name__}"
        raise UserError(Fault("model.freeze", problem, f"a regular expression for names such as {few(names)}"))
    for name in matches:
        module.get_parameter(name).requires_grad_(False)
    Modes(module).train()
    for path, part in module.named_modules():
        if isinstance(part, (_BatchNorm, _InstanceNorm)) and part.track_running_stats:
            part.training &= re.search(pattern, f"{path}.running_mean".removeprefix(".")) is None
    if not any(parameter.requires_grad for parameter in module.parameters()):
        problem = f"{pattern!r} freezes every parameter that was trained"
        raise UserError(Fault("model.freeze", problem, "a regular expression that leaves some to train"))


def _with_nearest(names: Sequence[str], others: Iterable[str]) -> list[str]:
    """The names, the first `LISTED` with the nearest of `others`."""
    others = list(others)
    return [
        f"{name} (nearest: {other})" if index < LISTED and (other := nearest(name, others)) else name
        for index, name in enumerate(names)
    ]


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a number"
