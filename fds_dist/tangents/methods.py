"""Which method can differentiate this network twice: tried on one batch before any training.

Some operators have no second derivative in PyTorch, some have one by a single method, some have a wrong one. The error
a user gets names the operator and the method that works. Where no exact method does, differences of gradients serve.
"""

from __future__ import annotations

import re
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import CheckpointError

from fds_dist.common.faults import Fault, UserError, user_line
from fds_dist.common.out_of_memory import is_out_of_memory
from fds_dist.tangents.batch_norm import FUNCTIONS
from fds_dist.tangents.difference import SHARE, DifferencePoint
from fds_dist.tangents.point import Point, PointInputs
from fds_dist.tangents.products import EXACT_METHODS, METHODS
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
OR_DIFFERENCE = "or tangents.method=difference, which takes differences of gradients"
CHECKPOINTING = "activation checkpointing (saved tensor hooks)"
_KNOWN_CAUSES = {"saved tensor hooks": CHECKPOINTING}


def default_method(device: torch.device) -> str:
    """The method that `auto` tries first.

    On a CPU one primal pass with one backward pass per tangent is the faster way to take tangents one at a time, which
    keeps their bits the same on any number of ranks; a GPU wants them batched.
    """
    return "double_backward" if device.type == "cpu" else "jvp"


@dataclass(frozen=True)
class TrialPoint(PointInputs):
    """Where methods are tried."""

    def by(self, method: str) -> Point:
        """The point, ready for products by `method`."""
        return METHODS[method](self)

    def product(self, method: str, tangent: Tensor) -> Tensor:
        """dg [D] of the tangent `tangent` [D] of the weights."""
        live = {name: self.buffers[name] for name in self.loss.network.live}
        zeros = tree_map(lambda tensor: torch.zeros_like(tensor)[None], (self.theta, live))
        return self.by(method).products(tangent[None], *zeros)[0][0]


def choose_method(requested: str, point: TrialPoint) -> tuple[str, str]:
    """The method to use and a remark about it ("" where there is none).

    Args:
        requested: `auto`, `difference`, or a name in `EXACT_METHODS`.

    Raises:
        UserError: the requested exact method fails or is wrong on this network and loss; the message names the operator
            at fault and the method that works.
        Exception: whatever the network or the loss raises by itself, without any derivative.
    """
    with torch.no_grad():
        point.loss(point.weights, point.theta, point.buffers, point.part)  # raises what is no matter of derivatives
    if requested == "difference":
        return requested, ""
    try:
        return _exact_method(requested, point)
    except UserError as error:
        if requested != "auto":
            raise
        return "difference", f"tangents by difference of gradients: {error.faults[0].problem}"


def _exact_method(requested: str, point: TrialPoint) -> tuple[str, str]:
    """An exact method and a remark; raises a `UserError` where none works, or not the requested one."""
    nodes = graph_nodes(point)
    custom, cut = custom_functions(nodes)
    names = ", ".join(custom)
    if cut:
        problem = f"neither method can differentiate {names} (marked @once_differentiable) twice"
        raise UserError(Fault("tangents.method", problem, f"a network without it, {OR_DIFFERENCE}"))
    remark = f"{names}: run `fds-dist verify`, which shows whether its second derivative is right" if names else ""
    wrong = wrong_operators(nodes)

    def failure_of(method: str) -> str:
        if method in wrong:
            return f"{wrong[method].name} (PyTorch's own second derivative of it is wrong)"
        return probe(method, point)

    if live := point.loss.network.live:
        return _method_for_live_buffers(requested, failure_of("jvp"), live), remark
    first = default_method(point.weights.device) if requested == "auto" else requested
    failure = failure_of(first)
    if not failure:
        return first, remark
    other = next(name for name in EXACT_METHODS if name != first)
    other_failure = failure_of(other)
    if not other_failure and requested == "auto":
        switch = f"tangents by {other}: {first} cannot differentiate {failure} twice"
        return other, f"{switch}; {remark}" if remark else switch
    problem = f"{first} cannot differentiate {failure} twice"
    if not other_failure:
        raise UserError(Fault("tangents.method", problem, f"tangents.method={other}, which can"))
    detail = "" if other_failure == failure else f" ({other} stops at {other_failure})"
    instead = wrong[first].instead if first in wrong else "a network without it"
    problem = f"neither method can differentiate {failure} twice{detail}"
    raise UserError(Fault("tangents.method", problem, f"{instead}, {OR_DIFFERENCE}"))


def _method_for_live_buffers(requested: str, failure: str, live: Sequence[str]) -> str:
    """`jvp`, the one exact method that carries the tangents of buffers."""
    named = ", ".join(live[:3]) + (" ..." if len(live) > 3 else "")
    if requested == "double_backward":
        problem = f"double_backward has no tangents for buffers, and {named} depend on the weights and reach a loss"
        raise UserError(Fault("tangents.method", problem, "auto or jvp"))
    if failure:
        problem = f"jvp cannot differentiate {failure}, and the buffers {named} need it: they reach a loss"
        raise UserError(Fault("model", problem, f"a network without such buffers, {OR_DIFFERENCE}"))
    return "jvp"


def difference_error(point: TrialPoint) -> float:
    """The relative error of products by `difference`: how far steps of two lengths are apart.

    Both the error of the difference itself, which the longer step has, and that of rounding, which the shorter one has,
    are in it. The products are along the gradient and along a move of all hyperparameters inside the loss; the larger
    error counts.

    Raises:
        UserError: the kinks of the network cannot be held.
    """
    at, closer = (DifferencePoint(point, share) for share in (SHARE, SHARE / 3))
    gradient, by_theta = at.gradient, torch.ones_like(point.theta)
    live = {name: torch.zeros_like(point.buffers[name]) for name in point.loss.network.live}
    moves = [(gradient, torch.zeros_like(by_theta))]
    if len(by_theta):
        moves.append((torch.zeros_like(gradient), by_theta))
    rows = tree_map(lambda *parts: torch.stack(parts), *((*move, live) for move in moves))
    try:
        products, references = (each.products(*rows)[0] for each in (at, closer))
    except CheckpointError as error:
        problem = "difference cannot hold the kinks (of ReLU, say) inside activation checkpointing"
        raise UserError(Fault("tangents.method", problem, "a network without it there, or another method")) from error
    sizes = references.norm(dim=1)
    return float(torch.where(sizes > 0, (products - references).norm(dim=1) / sizes, 0.0).max())


def probe(method: str, point: TrialPoint) -> str:
    """The operator that defeats `method` on one product at `point`, or "" where it works."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            point.product(method, torch.zeros_like(point.weights))
    except _FAILURES as error:
        if is_out_of_memory(error):
            raise
        return operator_at_fault(error, _anomalies(method, point))
    return ""


def _anomalies(method: str, point: TrialPoint) -> list[str]:
    """What anomaly detection says of the product that fails.

    It writes down the stack at each node of the graph, which takes several times as long as the product itself: nothing
    for networks where all works.
    """
    with warnings.catch_warnings(record=True) as caught, suppress(*_FAILURES):
        warnings.simplefilter("always")
        with torch.autograd.set_detect_anomaly(True, check_nan=False):
            point.product(method, torch.zeros_like(point.weights))
    return [str(warning.message) for warning in caught]


def graph_nodes(point: TrialPoint) -> set[Node]:
    """The nodes of the autograd graphs of the loss and of its gradient; where one fails, `probe` tells why."""
    inputs = (point.weights.detach().requires_grad_(), point.theta.detach().requires_grad_())
    point.loss.network.seed(0)
    roots: list[Tensor] = []
    with suppress(*_FAILURES):
        value, _ = point.loss(*inputs, point.buffers, point.part)
        roots.append(value)
        roots += point.loss.network.differentiate(value, inputs, create_graph=True, materialize_grads=True)
    return ancestors(*roots)


def ancestors(*roots: Tensor) -> set[Node]:
    """All nodes of the autograd graphs of `roots`."""
    pending = [root.grad_fn for root in roots]
    nodes: set[Node] = set()
    while pending:
        node = pending.pop()
        if node is not None and node not in nodes:
            nodes.add(node)
            pending += [parent for parent, _ in node.next_functions]
    return nodes


def custom_functions(nodes: set[Node]) -> tuple[list[str], bool]:
    """Names of the user's `autograd.Function`s among graph `nodes`, and whether one is marked `@once_differentiable`.

    PyTorch leaves the second derivative of such a function out without a word: the mark raises an error on a branch
    that it adds to the graph, and `autograd.grad` never visits that branch.
    """
    customs = [type(node) for node in nodes if isinstance(node, BackwardCFunction)]
    users = [kind for kind in customs if getattr(kind, "_forward_cls", None) not in FUNCTIONS]
    names = {kind.__name__.removesuffix("Backward") for kind in users}
    return sorted(names), any(node.name() == "torch::autograd::Error" for node in nodes)


def operator_at_fault(error: BaseException, anomalies: list[str]) -> str:
    """The best name for the operator behind a failed derivative.

    From the message, else from the backward node that anomaly detection saw, else the innermost call of a torch
    function, else the line of the user's code.
    """
    message = str(error)
    if "autograd.Function" in message:
        if _raised_by(error, "torch/utils/checkpoint.py"):
            return CHECKPOINTING
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


def _raised_by(error: BaseException, file: str) -> bool:
    """Whether the `file` of torch failed by itself: it lies between the last line of other code and the error."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename.endswith(file):
            return True
        if "/torch/" not in frame.filename:
            return False
    return False
