"""A network whose weights `fully_shard` (FSDP2) has spread over ranks, as the plain network that it was.

The engine spreads training over ranks by itself (`mesh.data`), as it does without `DistributedDataParallel`.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from fds_dist.common.faults import Fault, UserError

SHARDING = "torch.distributed.fsdp"
STATE = "__composable_api_state_key"
"""How the names begin under which a part holds the state of its sharding."""


def is_sharded(module: nn.Module) -> bool:
    """Whether `fully_shard` was applied to the module or to a part of it."""
    return any(_wrapper_at(part) is not None for part in module.modules())


def unsharded(module: nn.Module) -> nn.Module:
    """A copy of the `module` with whole weights, each part of its own class; the module itself stays sharded.

    Every rank that has a shard of the weights must call this alike: they are gathered.

    Raises:
        UserError: its forward passes are in a lower precision, which the copy would not have.
    """
    for path, part in module.named_modules():
        if _wrapper_at(part) is not None and (policy := _lower_precision(part)):
            kind = str(policy).removeprefix("torch.")
            problem = f"{path or type(module).__name__} is sharded with a mixed-precision policy ({kind})"
            raise UserError(Fault("model", problem, "fully_shard without mp_policy, and inner.precision=bf16"))
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        gather: Callable[[], Tensor] | None = getattr(parameter, "full_tensor", None)  # of a DTensor
        if gather is not None:
            whole = gather().detach().clone()
            memo[id(parameter)] = nn.Parameter(whole, parameter.requires_grad)
    for part in reversed(list(module.modules())):  # inner parts first: the outer ones then meet their copies
        wrapper = _wrapper_at(part)
        if wrapper is not None:
            plain = memo[id(part)] = object.__new__(type(part).__mro__[wrapper + 1])
            kept = {name: _without_hooks(value) for name, value in vars(part).items() if not name.startswith(STATE)}
            vars(plain).update(copy.deepcopy(kept, memo))
    return memo.get(id(module)) or copy.deepcopy(module, memo)


def _wrapper_at(part: nn.Module) -> int | None:
    """Where `FSDPModule`, which `fully_shard` puts in front of a part's class, stands among its classes.

    Told by name: to import it takes a second.
    """
    names = [(kind.__name__, kind.__module__.startswith(SHARDING)) for kind in type(part).__mro__]
    return names.index(("FSDPModule", True)) if ("FSDPModule", True) in names else None


def _without_hooks(value: Any) -> Any:
    """An attribute of a part: without the sharding's hooks, where it holds hooks by their numbers."""
    if not isinstance(value, OrderedDict):
        return value
    return OrderedDict((key, hook) for key, hook in value.items() if not _of_sharding(hook))


def _of_sharding(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith(SHARDING)


def _lower_precision(part: Any) -> object:
    """The dtype that the part's weights are cast to for a forward pass; None: they are not."""
    return part._get_fsdp_state()._mp_policy.param_dtype
