"""Which method can differentiate this network twice: tried on one batch before any training.

Some operators have no second derivative in PyTorch, some have one by a single method, some have a wrong one. The error
a user gets names the operator and the method that works.
"""

from __future__ import annotations

import re
import traceback
import warnings
from contextlib import suppress

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node

from fds_dist.common.batch import Batch
from fds_dist.common.faults import Fault, UserError, user_line
from fds_dist.tangents.network import TrainingLoss, differentiate
from fds_dist.tangents.products import METHODS
from fds_dist.tangents.second_derivatives import wrong_operators

_NAMED_IN_MESSAGE = (
    r"derivative for '?(?:aten::)?_?([\w.]+?)'? is not implemented",
    r"forward AD with _?([\w.]+?) that does not support it",
    r"Batching rule not implemented for (?:aten::)?([\w.]+)",
    r"vmap: (?:aten::)?([\w.]+)\(",
    r"vmap over (\w+), but",
    r"don't yet support (saved tensor hooks)",
)
_FAILURES = (RuntimeError, NotImplementedError, ValueError, TypeError)
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
        UserError: the requested method (or, for `auto`, every method) fails or is wrong on this network and loss; the
            message names the operator at fault and the method that works.
        Exception: whatever the network or the loss raises by itself, without any derivative.
    """
    with torch.no_grad():
        loss(weights, theta, batch)  # raises what has nothing to do with derivatives
    nodes = graph_nodes(loss, weights, theta, batch)
    custom, cut = custom_functions(nodes)
    names = ", ".join(custom)
    if cut:
        problem = f"neither method can differentiate {names} (marked @once_differentiable) twice"
        raise UserError(Fault("tangents.method", problem, "a network without it"))
    remark = f"{names}: run `fds-dist verify`, which shows whether its second derivative is right" if names else ""
    wrong = wrong_operators(nodes)

    def failure_of(method: str) -> str:
        if method in wrong:
            return f"{wrong[method].name} (PyTorch's own second derivative of it is wrong)"
        return probe(method, loss, weights, theta, batch, vectorize)

    first = default_method(weights.device) if requested == "auto" else requested
    failure = failure_of(first)
    if not failure:
        return first, remark
    other = next(name for name in METHODS if name != first)
    other_failure = failure_of(other)
    if not other_failure and requested == "auto":
        switch = f"tangents by {other}: {first} cannot differentiate {failure} twice"
        return other, f"{switch}; {remark}" if remark else switch
    problem = f"{first} cannot differentiate {failure} twice"
    if not other_failure:
        raise UserError(Fault("tangents.method", problem, f"tangents.method={other}, which can"))
    detail = "" if other_failure == failure else f" ({other} stops at {other_failure})"
    instead = wrong[first].instead if first in wrong else "a network without it"
    raise UserError(Fault("tangents.method", f"neither method can differentiate {failure} twice{detail}", instead))


def probe(method: str, loss: TrainingLoss, weights: Tensor, theta: Tensor, batch: Batch, vectorize: bool) -> str:
    """The operator that defeats `method` on one product of this loss, or "" where it works."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with torch.autograd.set_detect_anomaly(True, check_nan=False):
                point = METHODS[method](loss, weights, theta, batch, 0, vectorize)
                point.products(torch.zeros_like(weights)[None], torch.zeros_like(theta)[None])
        except torch.OutOfMemoryError:
            raise
        except _FAILURES as error:
            return operator_at_fault(error, [str(warning.message) for warning in caught])
    return ""


def graph_nodes(loss: TrainingLoss, weights: Tensor, theta: Tensor, batch: Batch) -> set[Node]:
    """The nodes of the autograd graphs of the loss and of its gradient; where one fails, `probe` tells why."""
    inputs = (weights.detach().requires_grad_(), theta.detach().requires_grad_())
    loss.network.seed(0)
    roots: list[Tensor] = []
    with suppress(*_FAILURES):
        value, _ = loss(*inputs, batch)
        roots.append(value)
        roots += differentiate(value, inputs, create_graph=True, materialize_grads=True)
    pending = [root.grad_fn for root in roots]
    nodes: set[Node] = set()
    while pending:
        node = pending.pop()
        if node is not None and node not in nodes:
            nodes.add(node)
            pending += [parent for parent, _ in node.next_functions]
    return nodes


def custom_functions(nodes: set[Node]) -> tuple[list[str], bool]:
    """Names of the custom `autograd.Function`s among graph `nodes`, and whether one is marked `@once_differentiable`.

    PyTorch leaves the second derivative of such a function out without a word: the mark raises an error on a branch
    that it adds to the graph, and `autograd.grad` never visits that branch.
    """
    names = {type(node).__name__.removesuffix("Backward") for node in nodes if isinstance(node, BackwardCFunction)}
    return sorted(names), any(node.name() == "torch::autograd::Error" for node in nodes)


def operator_at_fault(error: BaseException, anomalies: list[str]) -> str:
    """The best name for the operator behind a failed derivative.

    From the message, else from the backward node that anomaly detection saw, else the innermost call of a torch
    function, else the line of the user's code.
    """
    message = str(error)
    if "autograd.Function" in message:
        return f"a custom autograd.Function{user_line(error)}"
    for pattern in _NAMED_IN_MESSAGE:
        if found := re.search(pattern, message):
            name = found.group(1)
            return _KNOWN_CAUSES.get(name, name.removesuffix("_forward").removesuffix("_backward"))
    for anomaly in anomalies:
        if found := re.search(r"Error detected in (\w+?)(?:Backward)+\d*\.", anomaly):
            return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", found.group(1)).lower()
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename.endswith(("torch/nn/functional.py", "torch/functional.py")):
            return frame.name
    kind = message.splitlines()[0] if message else type(error).__name__
    return f"an operator{user_line(error)} (PyTorch says: {kind})"
