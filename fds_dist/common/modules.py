"""What is done to a whole `nn.Module`: its mode, its dtype, and copies of it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import UninitializedBuffer, is_lazy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._pytree import tree_leaves

from fds_dist.common.faults import Fault, UserError


class Modes:
    """Training and evaluation mode of a module, as its owner means them.

    In training mode all parts are in training mode, but for those (batch-norm of a frozen backbone) that were in
    evaluation mode while the module itself was in training mode. A module that is in evaluation mode itself, as
    `from_pretrained` of Hugging Face gives it, trains whole. An override of `train` has its say in either case.

    Args:
        module: with the modes of its parts as they were handed in.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._resting = [part for part in module.modules() if not part.training] if module.training else []

    def at_rest(self) -> list[str]:
        """Names of the parts in evaluation mode while the module trains; of nested ones the outermost."""
        resting = {id(part) for part in self._resting}
        parts = dict(self._module.named_modules())
        return [
            path
            for path, part in parts.items()
            if id(part) in resting and id(parts[path.rpartition(".")[0]]) not in resting
        ]

    def train(self) -> None:
        """Puts the module in training mode."""
        self._module.train()
        for part in self._resting:
            part.training = False

    def evaluate(self, batch_norm: str = "running") -> None:
        """Puts the module in evaluation mode.

        Args:
            batch_norm: "batch": every batch-norm that trains on the statistics of its batch still uses them. One at
                rest stays so: it is frozen.
        """
        self.train()
        on_batch = [part for part in self._module.modules() if isinstance(part, _BatchNorm) and part.training]
        self._module.eval()
        if batch_norm == "batch":
            for part in on_batch:
                part.training = True


def convert(module: nn.Module, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Moves the module in place, and returns it: floating-point tensors to `dtype`, complex ones to its complex kin.

    `nn.Module.to` would throw the imaginary parts away.
    """

    def converted(tensor: Tensor) -> Tensor:
        if tensor.is_complex():
            return tensor.to(device, dtype.to_complex())
        return tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)

    return module._apply(converted)


def independent_copy(module: nn.Module) -> nn.Module:
    """A deep copy that shares no tensor with `module`.

    `copy.deepcopy` alone fails on tensors that were computed from parameters and kept (the old `weight_norm`, pruning),
    whose values the copy gets without their history, and on buffers that a lazy module has yet to make.
    """
    memo: dict[int, object] = {}
    for part in module.modules():
        for value in tree_leaves(vars(part)):
            if isinstance(value, UninitializedBuffer) and is_lazy(value):
                memo[id(value)] = UninitializedBuffer(device=value.device, dtype=value.dtype)  # pyright: ignore[reportCallIssue]
            elif isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(module, memo)


def averaged_model(module: nn.Module, decay: float) -> AveragedModel:
    """torch's exponential moving average of the module's parameters, with its last buffers.

    Raises:
        UserError: the module cannot be copied by `copy.deepcopy`.
    """
    try:
        return AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay))
    except Exception as error:  # whatever the user's module raises
        message = next(iter(str(error).strip().splitlines()), type(error).__name__)
        problem = f"{decay:g} needs a copy of the network, which copy.deepcopy cannot make: {message}"
        raise UserError(Fault("inner.ema", problem, "null, or a network that can be copied")) from error
