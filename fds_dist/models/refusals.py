"""What a module may be that the engine would not train as plain PyTorch does, each with the way out.

The engine trains a copy of the module, on views of one vector in the place of its parameters. What hangs on the
parameter objects themselves, or reaches them past their module, would be lost without a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from types import FunctionType, MethodType

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from fds_dist.common.faults import Fault
from fds_dist.models.sharded import SHARDING, is_sharded

REGISTERED = ("_parameters", "_buffers", "_modules")
QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")
WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside `DataParallel`, `DistributedDataParallel` and `torch.compile`; the engine does their work."""
    while True:
        inner = module.module if isinstance(module, WRAPPERS) else getattr(module, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def uncompile_parts(module: nn.Module) -> None:
    """Puts the parts that `torch.compile` has wrapped in the places of their wrappers, whose names vanish with them."""
    for part in list(module.modules()):
        for name, child in part._modules.items():
            if child is not None and isinstance(getattr(child, "_orig_mod", None), nn.Module):
                part._modules[name] = unwrapped(child)


def module_faults(module: nn.Module) -> Iterator[Fault]:
    """What the engine would not train as plain PyTorch does."""
    for path, part in module.named_modules():
        if fault := _part_fault(path or type(module).__name__, part):
            yield fault
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    for path, part in module.named_modules():
        for key, tensor in _outside(part):
            if id(tensor) in names and not isinstance(part, nn.RNNBase):  # whose second list the engine keeps up
                where = f"{path}.{key}" if path else key
                problem = f"the parameter {names[id(tensor)]} is also held in {where}, which training would not reach"
                yield Fault("model", problem, "a forward that reads it from the part that it is registered in")
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_meta and not is_lazy(tensor):
            problem = f"{name} is on the meta device, where it has no values"
            yield Fault("model", problem, "a network on a real device: module.to_empty(device=...), then its weights")
    for name, parameter in module.named_parameters():
        if fault := _parameter_fault(name, parameter):
            yield fault
    yield from _memory_faults(module)


def unregistered(module: nn.Module) -> list[str]:
    """Where the module holds parameters in plain containers alone, so that `parameters()` does not name them.

    Those that require no gradient (a teacher in a list) are meant so.
    """
    registered = set(map(id, module.parameters()))
    return [
        f"{path}.{key}" if path else key
        for path, part in module.named_modules()
        for key in dict.fromkeys(key for key, tensor in _outside(part) if id(tensor) not in registered)
    ]


def _outside(part: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The trained parameters in a part's plain attributes, and in those that modules there hold."""
    for key, value in vars(part).items():
        for leaf in tree_leaves(value) if key not in REGISTERED and not key.endswith("_hooks") else ():
            held = leaf.parameters() if isinstance(leaf, nn.Module) else [leaf]
            yield from ((key, each) for each in held if isinstance(each, nn.Parameter) and each.requires_grad)


def _part_fault(path: str, part: nn.Module) -> Fault | None:
    kind = type(part)
    if isinstance(part, torch.jit.ScriptModule):
        return Fault("model", f"{path} is a scripted module, whose parameters cannot be replaced", "the Python module")
    if kind.__module__.startswith(SHARDING):
        expected = "the module before it was sharded (mesh.data spreads batches and the state of training over ranks)"
        if is_sharded(part):
            expected = f"the module itself in place of a function of the seed: it is gathered once; or {expected}"
        return Fault("model", f"{path} is sharded by {'fully_shard' if is_sharded(part) else kind.__name__}", expected)
    if kind.__module__.startswith(QUANTIZED):
        problem = f"{path} is quantized ({kind.__name__}): it has no gradient"
        return Fault("model", problem, "the network before its quantization")
    if isinstance(part, WRAPPERS):
        return Fault("model", f"{path} is a part inside {kind.__name__}", "the part itself, without that wrapper")
    if part._backward_hooks or part._backward_pre_hooks:
        problem = f"{path} has backward hooks, which may change gradients in ways that have no derivative here"
        return Fault("model", problem, "a module without them (inner.clip_gradient bounds gradients)")
    if _holds_module(vars(part).get("forward")):
        problem = f"the forward of {path} was replaced by a function that holds modules, so no copy can be trained"
        return Fault("model", problem, "a subclass with that forward")
    return None


def _holds_module(function: object) -> bool:
    if not isinstance(function, FunctionType):
        return False
    contents = [cell.cell_contents for cell in function.__closure__ or ()]
    owners = [value.__self__ if isinstance(value, MethodType) else value for value in contents]
    return any(isinstance(owner, (nn.Module, nn.Parameter)) for owner in owners)


def _parameter_fault(name: str, parameter: nn.Parameter) -> Fault | None:
    if is_lazy(parameter):
        return None
    if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
        problem = f"the parameter {name} has a gradient hook, which would not run here"
        return Fault("model", problem, "parameters without hooks (inner.clip_gradient bounds gradients)")
    if type(parameter.data) is not Tensor:
        problem = f"the parameter {name} is a {type(parameter.data).__name__}"
        return Fault("model", problem, "plain tensors as parameters")
    if parameter.requires_grad and not parameter.is_floating_point():
        kind = str(parameter.dtype).removeprefix("torch.")
        return Fault("model", f"the parameter {name} is {kind}", "real floating-point parameters, or frozen ones")
    return None


def _memory_faults(module: nn.Module) -> Iterator[Fault]:
    """Tensors that overlap a trained parameter in memory without being it: training moves both, a copy parts them."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    dense = [(name, tensor) for name, tensor in tensors if _is_dense(tensor)]
    spans = sorted((*_span(tensor), name, tensor.requires_grad) for name, tensor in dense)
    for (start, end, name, trained), (next_start, _, next_name, next_trained) in pairwise(spans):
        if start <= next_start < end and (trained or next_trained):
            problem = f"{name} and {next_name} share their memory, but are two tensors"
            yield Fault("model", problem, "one parameter under both names, or two with memory of their own")


def _is_dense(tensor: Tensor) -> bool:
    usual = not is_lazy(tensor) and type(tensor.data) is Tensor and tensor.layout is torch.strided
    return usual and not tensor.is_meta and tensor.numel() > 0


def _span(tensor: Tensor) -> tuple[int, int]:
    """The addresses of a tensor's first byte and of the one after its last."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()
