"""The arithmetic of a device: process-wide settings of PyTorch by which every rank computes the same bits."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from fds_dist.common.faults import Fault, UserError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
WORKSPACES = (":4096:8", ":16:8")
"""Values of that variable with which cuBLAS gives the same bits each time (NVIDIA's guide to cuBLAS, 2.1.4)."""

FRESH_MEMORY: Any = torch.utils.deterministic
"""Has the switch `fill_uninitialized_memory`."""

USED_BEFORE = (
    f"this process used CUDA before fds-dist without {WORKSPACE}={WORKSPACES[0]}: operators without a deterministic "
    "kernel are not looked for, and another run may differ in its last bits (set the variable before Python starts)"
)


@dataclass(frozen=True)
class Arithmetic:
    """How a GPU is to compute. Nothing of it concerns a CPU."""

    deterministic: bool = True
    """Whether operators take the kernels that give the same bits each time, and those without one raise."""
    precision: str = "ieee"
    """Of float32 convolutions and matrix products: `ieee` (24 bits of mantissa) or `tf32` (11 bits, tensor cores)."""

    def set(self, device: torch.device) -> str:
        """Sets it for this process, and makes `device` the current GPU, before a network first runs there.

        Returns:
            A remark for a person; "" where there is none.

        Raises:
            UserError: the environment asks cuBLAS for kernels that are not deterministic.
        """
        if device.type != "cuda":
            return "precision: tf32 has no effect on a CPU" if self.precision == "tf32" else ""
        torch.cuda.set_device(device)
        _set_precisions(dict.fromkeys(_PRECISIONS, self.precision))
        return _ask_for_deterministic_kernels(device) if self.deterministic else ""


def _ask_for_deterministic_kernels(device: torch.device) -> str:
    """Returns a remark where it is too late for that in this process."""
    workspace = os.environ.setdefault(WORKSPACE, WORKSPACES[0])
    if workspace not in WORKSPACES:
        problem = f"{workspace} lets cuBLAS give other bits each time"
        raise UserError(Fault(f"environment variable {WORKSPACE}", problem, " or ".join(WORKSPACES)))
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    FRESH_MEMORY.fill_uninitialized_memory = False  # it would cost a kernel for every new tensor
    torch.use_deterministic_algorithms(True)
    one = torch.ones(1, 1, device=device)
    try:
        torch.mm(one, one)
    except RuntimeError as error:
        if WORKSPACE not in str(error):
            raise
        torch.use_deterministic_algorithms(False)  # PyTorch reads the variable once, and would refuse every product
        return USED_BEFORE
    return ""


@contextmanager
def arithmetic_restored() -> Iterator[None]:
    """Inside, `Arithmetic.set` may be called; afterwards all settings are as before."""
    before = _Settings.now()
    try:
        yield
    finally:
        before.restore()


_BACKENDS: Any = torch.backends
_PRECISIONS: dict[str, Any] = {
    "matmul": _BACKENDS.cuda.matmul,
    "conv": _BACKENDS.cudnn.conv,
    "rnn": _BACKENDS.cudnn.rnn,
}
"""What has a `fp32_precision`."""
_OLDER_NAMES = _BACKENDS.cuda.matmul, _BACKENDS.cudnn
"""These have `allow_tf32`, which must say the same: libraries read it, and PyTorch raises where the two differ."""


def _set_precisions(precisions: Mapping[str, str]) -> None:
    for older, name in zip(_OLDER_NAMES, ("matmul", "conv"), strict=True):
        older.allow_tf32 = precisions[name] == "tf32"
    for name, precision in precisions.items():
        _PRECISIONS[name].fp32_precision = precision


@dataclass(frozen=True)
class _Settings:
    """The process-wide settings that `Arithmetic.set` changes."""

    deterministic: bool
    warn_only: bool
    fill: bool
    cudnn: tuple[bool, bool]
    precisions: Mapping[str, str]
    workspace: str | None
    device: int | None

    @staticmethod
    def now() -> _Settings:
        return _Settings(
            deterministic=torch.are_deterministic_algorithms_enabled(),
            warn_only=torch.is_deterministic_algorithms_warn_only_enabled(),
            fill=FRESH_MEMORY.fill_uninitialized_memory,
            cudnn=(torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
            precisions={name: place.fp32_precision for name, place in _PRECISIONS.items()},
            workspace=os.environ.get(WORKSPACE),
            device=torch.cuda.current_device() if torch.cuda.is_initialized() else None,
        )

    def restore(self) -> None:
        """Touches nothing that is as it was."""
        now = _Settings.now()
        if self.precisions != now.precisions:
            _set_precisions(self.precisions)
        if (self.deterministic, self.warn_only) != (now.deterministic, now.warn_only):
            torch.use_deterministic_algorithms(self.deterministic, warn_only=self.warn_only)
        FRESH_MEMORY.fill_uninitialized_memory = self.fill
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = self.cudnn
        if self.workspace is None:
            os.environ.pop(WORKSPACE, None)
        if self.device is not None and self.device != now.device:
            torch.cuda.set_device(self.device)


def kernels_of(device: torch.device) -> dict[str, str]:
    """What decides which kernels a GPU runs, and with which bits, by name; nothing of a CPU."""
    if device.type != "cuda":
        return {}
    properties = torch.cuda.get_device_properties(device)
    facts = {
        "GPU": torch.cuda.get_device_name(device),
        "multiprocessors": properties.multi_processor_count,
        "compute capability": f"{properties.major}.{properties.minor}",
        "PyTorch": torch.__version__,
        "CUDA": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version(),
    }
    return {name: str(fact) for name, fact in facts.items()}
