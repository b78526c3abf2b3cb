"""Imports torchvision, also where its compiled operators do not load."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

import torch

from fds_dist.common.faults import Fault, UserError

_OPERATORS = ("nms", "qnms")
"""Operators whose shape rules torchvision registers as it is imported, whether or not it could load them."""


@functools.cache
def import_torchvision() -> ModuleType:
    """torchvision, with its submodules ``datasets`` and ``models``.

    The wheel of the package index is built for CUDA: beside a CPU-only torch its compiled operators do not load, and
    its import fails for want of their declarations. These are then declared here, without anything behind them: data
    sets and classification models do not use them. Where the operators load, nothing is changed.

    Raises `UserError` where torchvision is not installed or does not fit the installed torch.
    """
    try:
        try:
            return importlib.import_module("torchvision")
        except RuntimeError as error:
            if "operator torchvision::nms does not exist" not in str(error):
                raise
            _declare_operators()
            return importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError) as error:
        problem = f"torchvision cannot be imported beside torch {torch.__version__}: {error}"
        raise UserError(Fault("", problem, "the torchvision made for this torch, see constraints.txt")) from error


def _declare_operators() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in _OPERATORS:
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)


_declared: list[torch.library.Library] = []  # a library takes its declarations along when it is collected
