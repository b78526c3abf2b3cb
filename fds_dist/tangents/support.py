"""Which method can differentiate this network twice: tried on one batch before any training.

Some operators have no second derivative in PyTorch, some have one by a single method. The error a user gets names the
operator and the method that works.
"""

from __future__ import annotations

import re
import traceback
import warnings
from pathlib import Path

import torch
from torch import Tensor

from fds_dist.faults import Fault, UserError
from fds_dist.tangents.network import TrainingLoss
from fds_dist.tangents.products import METHODS, Batch

_NAMED_IN_MESSAGE = (
    r"derivative for '?(?:aten::)?_?([\w.]+?)'? is not implemented",
    r"forward AD with _?([\w.]+?) that does not support it",
    r"Batching rule not implemented for (?:aten::)?([\w.]+)",
    r"vmap: (?:aten::)?([\w.]+)\(",
    r"don't yet support (saved tensor hooks)",
)
_KNOWN_CAUSES = {"saved tensor hooks": "activation checkpointing (saved tensor hooks)"}


def default_method(device: torch.device) -> str:
    """The method that `auto` tries first.

    On a CPU one primal pass with one backward pass per tangent is the faster way to take tangents one at a time, which
    keeps their bits the same on any number of ranks; a GPU wants them batched.
    """
    return "double_backward" if device.type == "cpu" else "jvp"


def choose_method(
    requested: str, loss: TrainingLoss, weights: Tensor, theta: Tensor, batch: Batch, vectorize: bool
) -> tuple[str, str]:
    """The method to use and a remark about it ("" where there is none).

    Args:
        requested: `auto`, or a name in `METHODS`.

    Raises:
        UserError: the requested method (or, for `auto`, every method) fails on this network and loss; the message
            names the operator at fault and the method that works.
    """
    first = default_method(weights.device) if requested == "auto" else requested
    failure = probe(first, loss, weights, theta, batch, vectorize)
    if not failure:
        return first, ""
    other = next(name for name in METHODS if name != first)
    other_failure = probe(other, loss, weights, theta, batch, vectorize)
    if not other_failure and requested == "auto":
        return other, f"tangents by {other}: {first} cannot differentiate {failure} twice"
    problem = f"{first} cannot differentiate {failure} twice"
    if not other_failure:
        raise UserError(Fault("tangents.method", problem, f"tangents.method={other}, which can"))
    detail = "" if other_failure == failure else f" ({other} stops at {other_failure})"
    raise UserError(
        Fault("tangents.method", f"neither method can differentiate {failure} twice{detail}", "a network without it")
    )


def probe(method: str, loss: TrainingLoss, weights: Tensor, theta: Tensor, batch: Batch, vectorize: bool) -> str:
    """The operator that defeats `method` on one product of this loss, or "" where it works.

    Raises:
        Exception: whatever the network or the loss raises by itself, without any derivative.
    """
    with torch.no_grad():
        loss(weights, theta, batch)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with torch.autograd.set_detect_anomaly(True, check_nan=False):
                point = METHODS[method](loss, weights, theta, batch, 0, vectorize)
                point.products(torch.zeros_like(weights)[None], torch.zeros_like(theta)[None])
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
            return operator_at_fault(error, [str(warning.message) for warning in caught])
    return ""


def operator_at_fault(error: BaseException, anomalies: list[str]) -> str:
    """The best name for the operator behind a failed derivative.

    From the message, else from the backward node that anomaly detection saw, else the innermost call of a torch
    function, else the line of the user's code.
    """
    message = str(error)
    for pattern in _NAMED_IN_MESSAGE:
        if found := re.search(pattern, message):
            name = found.group(1)
            return _KNOWN_CAUSES.get(name, name.removesuffix("_forward").removesuffix("_backward"))
    for anomaly in anomalies:
        if found := re.search(r"Error detected in (\w+?)(?:Backward)+\d*\.", anomaly):
            return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", found.group(1)).lower()
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        if frame.filename.endswith(("torch/nn/functional.py", "torch/functional.py")):
            return frame.name
    outside = [frame for frame in frames if "/torch/" not in frame.filename and "fds_dist" not in frame.filename]
    where = f" at {Path(outside[-1].filename).name}:{outside[-1].lineno}" if outside else ""
    return f"an operator{where} (PyTorch says: {message.splitlines()[0]})"
