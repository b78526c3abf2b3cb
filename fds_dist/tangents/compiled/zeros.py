"""Takes the products of a traced graph that are known to be zero out of it.

A batch has no tangent. In a trace it has one of zeros, and its products with the weights of the first layer would cost
as much as the layer's share of a plain step.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import GraphModule, Node

_aten = torch.ops.aten
_MADE = {_aten.zeros.default, _aten.zeros_like.default, _aten.new_zeros.default}
_MOVED = {
    _aten.alias.default,
    _aten.detach.default,
    _aten.expand.default,
    _aten.permute.default,
    _aten.t.default,
    _aten.transpose.int,
    _aten.unsqueeze.default,
    _aten.view.default,
    _aten._unsafe_view.default,
}
"""Whose result has the numbers of the first argument, in its memory."""
_PRODUCTS = {_aten.mm.default, _aten.bmm.default, _aten.convolution.default}
_GRADIENT, _INPUT, _WEIGHT = range(3)
"""The arguments of a convolution's backward pass, whose results are the gradients of input, weight and bias."""
_LINEAR_IN = {0: (_GRADIENT, _WEIGHT), 1: (_GRADIENT, _INPUT), 2: (_GRADIENT,)}


def drop_zeros(traced: GraphModule) -> None:
    """Adds nothing where a product of zeros was added, and puts zeros in the place of one that is spread over others.

    What then has no reader goes with the graph's dead code.
    """
    zeros: set[Node] = set()
    for node in list(traced.graph.nodes):
        if _is_zero(node, zeros) and not _is_written(node):
            zeros.add(_cheap(node))
        elif node.target is _aten.add.Tensor and not node.kwargs:
            for term, other in (node.args, node.args[::-1]):
                if term in zeros and isinstance(other, Node) and _alike(node, other):
                    node.replace_all_uses_with(other)
                    break


def _is_zero(node: Node, zeros: set[Node]) -> bool:
    """Whether its result is, by those of the nodes before it."""
    arguments: tuple[Any, ...] = (*node.args, None, None)
    first, second, *others = arguments
    if node.target in _PRODUCTS:
        return (first in zeros or second in zeros) and not any(isinstance(bias, Node) for bias in others)
    if node.target is operator.getitem and getattr(first, "target", None) is _aten.convolution_backward.default:
        return any(first.args[place] in zeros for place in _LINEAR_IN[second])
    return node.target in _MADE or (node.target in _MOVED and first in zeros)


def _cheap(node: Node) -> Node:
    """Zeros of the node's shape that no product makes; the node itself where its shape depends on numbers of rows."""
    result = node.meta["val"]
    if node.target not in _PRODUCTS or not all(isinstance(size, int) for size in result.shape):
        return node
    graph = node.graph
    with graph.inserting_before(node):
        zero = graph.call_function(_aten.zeros.default, ([],), {"dtype": result.dtype, "device": result.device})
        spread = graph.call_function(_aten.expand.default, (zero, list(result.shape)))
    zero.meta, spread.meta = {**node.meta, "val": result.new_zeros(())}, dict(node.meta)
    node.replace_all_uses_with(spread)
    return spread


def _is_written(node: Node) -> bool:
    """Whether something is written into its memory, by way of any view."""
    for user in node.users:
        schema = getattr(user.target, "_schema", None)
        if schema is not None and schema.is_mutable:
            return True
        is_view = schema is None or user.target in _MOVED or any(result.alias_info for result in schema.returns)
        if is_view and _is_written(user):
            return True
    return False


def _alike(node: Node, term: Node) -> bool:
    """Whether the sum `node` has the shape and the type of this one of its terms."""
    result, value = node.meta["val"], term.meta["val"]
    return result.shape == value.shape and result.dtype == value.dtype
