"""Tensors that say that they are on a GPU, and a record of what the host would send there and wait for.

Fake tensors (shapes and devices, no values) go through PyTorch's dispatcher as CUDA tensors do: operators are chosen as
on a machine with a GPU, and operands on different devices are errors. Needs the library of `pretend_cuda.cpp`, loaded
before torch; `pretended_main.py` does that.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_leaves

Place = tuple[str, str]
"""An operator, and the line of the package that asked for it: `inner/run.py:93`."""

VIEWS = """
    view _unsafe_view _reshape_alias as_strided expand permute t transpose movedim unsqueeze squeeze diagonal unfold
    slice select split split_with_sizes unsafe_split unsafe_split_with_sizes unbind detach alias lift_fresh view_as_real
    _conj _neg_view
"""
ALLOCATIONS = (
    "empty empty_like new_empty empty_strided new_empty_strided _pin_memory _efficientzerotensor record_stream"
)
QUESTIONS = "size stride device is_same_size is_pinned sym_size sym_stride sym_numel sym_storage_offset"
NO_KERNEL = frozenset(f"{VIEWS} {ALLOCATIONS} {QUESTIONS} _has_same_storage_numel".split())

WAITING = ("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive")
"""Operators whose result has a size that only the device knows."""

INDEXING = ("index", "index_put", "index_put_", "_unsafe_index", "_unsafe_index_put", "_index_put_impl_")


@dataclass
class Seen:
    """What one stretch of the program did on the device."""

    kernels: Counter[str] = field(default_factory=Counter)
    waits: Counter[Place] = field(default_factory=Counter)
    """Where the host waits for a value."""
    sent: Counter[Place] = field(default_factory=Counter)
    """Copies to the device from pinned memory, during which the host runs on."""
    blocking: Counter[Place] = field(default_factory=Counter)
    """Copies to the device for which the host waits."""
    collectives: Counter[Place] = field(default_factory=Counter)
    misplaced: Counter[Place] = field(default_factory=Counter)
    """Collectives on tensors that are on the host, or not contiguous."""


def line_of_package() -> str:
    """The innermost line of `fds_dist` on the stack."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        _, package, inside = frame.f_code.co_filename.rpartition("/fds_dist/")
        if package and not inside.startswith("common/transfer"):
            return f"{inside}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


class Watch(TorchDispatchMode):
    """Counts kernels, waits and copies in `seen`. A value that the host asks for is 1, or True."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = Seen()

    def take(self) -> Seen:
        """What there was since the last call."""
        seen, self.seen = self.seen, Seen()
        return seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.__name__.partition(".")[0]
        if name in ("_local_scalar_dense", "equal", "allclose"):
            note(self.seen.waits, name, on_gpu(args[0]))
            return _answer(func, args)
        if name in WAITING:
            note(self.seen.waits, name, on_gpu(args[0]))
        elif name in INDEXING and on_gpu(args[0]):
            indices = [index for index in args[1] if index is not None]
            note(self.seen.waits, name, any(index.dtype in (torch.bool, torch.uint8) for index in indices))
            note(self.seen.blocking, name, any(not on_gpu(index) for index in indices))
        elif func.namespace in ("c10d", "fds_dist"):
            sent = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.numel()]
            note(self.seen.collectives, name, 1)
            note(self.seen.misplaced, name, sum(not (on_gpu(each) and each.is_contiguous()) for each in sent))
        result = func(*args, **kwargs)
        if name == "_to_copy" and isinstance(args[0], Tensor):
            self._copied(name, args[0], result, kwargs.get("non_blocking"))
        elif name == "copy_" and isinstance(args[1], Tensor):
            self._copied(name, args[1], result, kwargs.get("non_blocking") or args[2:] == (True,))
        if name not in NO_KERNEL:
            tensors = (leaf for leaf in tree_leaves((result, args)) if isinstance(leaf, Tensor))
            self.seen.kernels[name] += any(map(on_gpu, tensors))
        return result

    def _copied(self, name: str, source: Tensor, result: Tensor, runs_on: object) -> None:
        """Notes a copy between host and device."""
        if on_gpu(result) and not on_gpu(source):
            same = source.dtype == result.dtype  # else it is converted first, into memory that is not pinned
            note(self.seen.sent if runs_on and same and is_pinned(source) else self.seen.blocking, name, 1)
        elif on_gpu(source) and not on_gpu(result):
            note(self.seen.waits, name, 1)


def note(counter: Counter[Place], name: str, times: int) -> None:
    """Counts an operator at its line."""
    if times:
        counter[name, line_of_package()] += times


def on_gpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cuda"


def is_pinned(tensor: Tensor) -> bool:
    """Whether it came from `pin_memory`: fake tensors are in no memory at all."""
    return getattr(tensor, "pretended_pinned", False)


def _pinned(tensor: Tensor) -> Tensor:
    tensor.pretended_pinned = True  # type: ignore[attr-defined]
    return tensor


def _answer(func: Any, args: Any) -> Any:
    """The value of a tensor; a fake one has none."""
    tensor = args[0]
    if not any(isinstance(arg, FakeTensor) for arg in args):
        with unset_fake_temporarily():
            return func(*args)
    if tensor.dtype == torch.bool or func._schema.name != "aten::_local_scalar_dense":
        return True
    return 1.0 if tensor.is_floating_point() else 1


class HostGenerator(torch.Generator):
    """A generator on the CPU, whatever device it is asked for: one on a GPU needs CUDA's own library."""

    def __new__(cls, device: Any = None) -> Any:
        return super().__new__(cls, "cpu")  # type: ignore[call-arg]


TOLIST = FakeTensor.tolist


def _tolist(tensor: FakeTensor) -> Any:
    """`tolist`, which waits once, not once for each number."""
    watch = next(mode for mode in reversed(_get_current_dispatch_mode_stack()) if isinstance(mode, Watch))
    note(watch.seen.waits, "tolist", on_gpu(tensor))
    with mock.patch.object(watch, "seen", Seen()):
        return TOLIST(tensor)


def _deep_copy(tensor: FakeTensor, memo: dict[int, Any]) -> Tensor:
    """A copy of a tensor in the same mode.

    PyTorch copies the mode along, and in it weak references to storages, the copies of which count as none and are
    freed as often as they are there: memory that is in use is then given to others, and the process dies by a signal,
    at once or much later.
    """
    if id(tensor) not in memo:
        copied = tensor.detach().clone()
        is_parameter, trained = isinstance(tensor, nn.Parameter), tensor.requires_grad
        memo[id(tensor)] = nn.Parameter(copied, trained) if is_parameter else copied.requires_grad_(trained)
    copied: Any = memo[id(tensor)]
    return copied


def _apply(module: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True, done: Any = None) -> Any:
    """`nn.Module._apply` without swapping tensors, which fake ones do not take. Tied parameters stay tied."""
    done = {} if done is None else done
    for child in module.children():
        _apply(child, function, done=done)
    for name, parameter in module._parameters.items():
        if parameter is None:
            continue
        if id(parameter) not in done:
            with torch.no_grad():
                moved = nn.Parameter(function(parameter.detach()), parameter.requires_grad)
            done[id(parameter)] = parameter, moved  # the old one stays, or its id would be another's
        module._parameters[name] = done[id(parameter)][1]
    for name, buffer in module._buffers.items():
        module._buffers[name] = None if buffer is None else function(buffer)
    return module


def _cuda(count: int) -> dict[str, Callable[..., Any]]:
    """What the package and the parts of torch that it uses ask `torch.cuda` for."""
    current = [0]

    def nothing() -> Callable[..., None]:
        return lambda *args, **options: None  # a new one each time: torch's compiler has a rule for each function

    def set_device(device: Any) -> None:
        current[0] = device if isinstance(device, int) else torch.device(device).index

    properties = SimpleNamespace(major=9, minor=0, name="pretended", multi_processor_count=132, total_memory=1 << 36)
    properties.uuid = "pretended"
    functions = {
        "is_available": lambda: True,
        "device_count": lambda: count,
        "current_device": lambda: current[0],
        "is_initialized": lambda: True,
        "set_device": set_device,
        "max_memory_allocated": lambda *args: 1 << 20,
        "memory_allocated": lambda *args: 1 << 10,
        "mem_get_info": lambda *args: (1 << 35, 1 << 36),
        "get_device_name": lambda *args: "pretended",
        "get_device_properties": lambda *args: properties,
        "get_device_capability": lambda *args: (9, 0),
        "is_bf16_supported": lambda *args, **options: True,
        "is_current_stream_capturing": lambda: False,
        "get_rng_state": lambda *args, **options: torch.zeros(16, dtype=torch.uint8),
    }
    silent = ("_lazy_init", "synchronize", "manual_seed", "manual_seed_all", "set_rng_state", "empty_cache")
    return functions | {name: nothing() for name in (*silent, "reset_peak_memory_stats")}


@contextmanager
def pretended_gpus(count: int = 1) -> Iterator[Watch]:
    """Within the block there are `count` GPUs, and all new tensors are fake."""
    watch = Watch()
    with ExitStack() as stack:
        for name, function in _cuda(count).items():
            stack.enter_context(mock.patch.object(torch.cuda, name, function))
        stack.enter_context(mock.patch.object(torch.backends.cudnn, "is_acceptable", lambda tensor: True))
        stack.enter_context(mock.patch.object(FakeTensorMode, "avoid_device_init", property(lambda mode: True)))
        stack.enter_context(mock.patch.object(nn.Module, "_apply", _apply))
        stack.enter_context(mock.patch.object(torch, "Generator", HostGenerator))
        stack.enter_context(mock.patch.object(FakeTensor, "tolist", _tolist))
        stack.enter_context(mock.patch.object(FakeTensor, "__deepcopy__", _deep_copy))
        stack.enter_context(mock.patch.object(Tensor, "pin_memory", lambda tensor, *args: _pinned(tensor.clone())))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(watch)
        yield watch
