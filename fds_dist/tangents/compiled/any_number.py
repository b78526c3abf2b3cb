"""One graph for any number of tangents, made of the traces for two numbers.

The two differ in the shapes alone that they ask for: where one trace has 2·n and the other 3·n, the graph has C·n. So
a step computes the tangents there are, by the same kernels, and nothing is compiled anew because a bucket begins.

PyTorch's own symbolic trace stops at transforms that read a batch's size as a plain number.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph as Nodes
from torch.fx import GraphModule, Node

_LIBRARY = torch.library.Library("fds_dist", "FRAGMENT")
_CONVOLUTION, _BACKWARD = torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default


class NotAlike(ValueError):
    """Two traces differ in more than the number of tangents."""


def generalized(few: GraphModule, many: GraphModule) -> tuple[GraphModule, tuple[int, ...]]:
    """The graph that `few` and `many` are of, traces with different numbers of tangents, and which of its arguments
    have one row per tangent.

    Raises:
        NotAlike: there is none.
    """
    pairs = _paired(few, many)
    sizes = [(_shape(one), _shape(other)) for one, other in pairs if other.op == "placeholder"]
    rows = tuple(place for place, (one, other) in enumerate(sizes) if one != other)
    if not rows:
        raise NotAlike("no argument has a row per tangent")
    (low, *_), (high, *_) = sizes[rows[0]]
    return _merged(pairs, many, rows[0], low, high), rows


def _paired(few: GraphModule, many: GraphModule) -> list[tuple[Node, Node]]:
    pairs = list(zip(few.graph.nodes, many.graph.nodes, strict=False))
    is_alike = len(few.graph.nodes) == len(many.graph.nodes) and all(
        (one.op, one.name) == (other.op, other.name)
        and (one.op != "call_function" or one.target == other.target)
        and (one.op != "get_attr" or _same(getattr(few, str(one.target)), getattr(many, str(other.target))))
        for one, other in pairs
    )
    if not is_alike:
        raise NotAlike("the operators depend on the number of tangents")
    return pairs


def _same(one: object, other: object) -> bool:
    return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)


def _shape(node: Node) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def _merged(pairs: Sequence[tuple[Node, Node]], many: GraphModule, counted: int, low: int, high: int) -> GraphModule:
    """The graph of traces with `low` and `high` tangents: with C, the rows of the argument in the place `counted`."""
    graph, copies = Nodes(), dict[Node, Node]()
    times = dict[int, Node]()
    placeholders = [other for _, other in pairs if other.op == "placeholder"]

    def size(factor: int) -> Node:
        """C·factor, computed once, before all that may use it."""
        if factor not in times:
            with graph.inserting_after(times[1]):
                times[factor] = graph.call_function(operator.mul, (times[1], factor))
        return times[factor]

    def merge(one: Any, other: Any) -> Any:
        if isinstance(other, Node):
            return copies[other]
        if isinstance(other, (list, tuple)) and len(one) == len(other):
            return type(other)(merge(*both) for both in zip(one, other, strict=True))
        if type(one) is type(other) and one == other:
            return other
        if isinstance(other, int) and isinstance(one, int) and one * high == other * low:
            return size(other // high)
        raise NotAlike(f"{one} and {other} are no multiples of the number of tangents")

    for one, other in pairs:
        copies[other] = graph.node_copy(other, lambda node: copies[node])
        if other is placeholders[-1]:
            times[1] = graph.call_function(torch.ops.aten.sym_size.int, (copies[placeholders[counted]], 0))
        if other.op == "call_function":
            copies[other].args = merge(one.args, other.args)
            copies[other].kwargs = {name: merge(one.kwargs[name], value) for name, value in other.kwargs.items()}
    return GraphModule(many, graph)


def of_any_size(tensors: Sequence[Tensor], rows: Sequence[int]) -> list[Tensor]:
    """Fake tensors like these, with a symbol for the first size of those in the places `rows`."""
    from torch._dynamo.source import ConstantSource
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

    mode = FakeTensorMode(shape_env=ShapeEnv(assume_static_by_default=True))
    fakes = []
    for place, tensor in enumerate(tensors):
        sizes = [DimDynamic.STATIC] * tensor.dim()
        if place in rows:
            sizes[0] = DimDynamic.DUCK  # one symbol for all that have the same size
        context, source = StatelessSymbolicContext(dynamic_sizes=sizes), ConstantSource(f"argument_{place}")
        fakes.append(mode.from_tensor(tensor, symbolic_context=context, source=source))
    return fakes


def with_opaque_convolutions(module: GraphModule) -> GraphModule:
    """The same graph with convolutions as operators of our own, which call PyTorch's.

    Inductor makes numbers of the sizes of a convolution that it knows.
    """
    graph, copies = Nodes(), dict[Node, Node]()
    graph.output(graph.graph_copy(module.graph, copies))
    opaque = {_CONVOLUTION: torch.ops.fds_dist.convolution, _BACKWARD: torch.ops.fds_dist.convolution_backward}
    for node in graph.nodes:
        if node.target in opaque:
            node.target = opaque[node.target].default
    return GraphModule(module, graph)


def _backward(gradient: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """Its results; an empty one where it is not asked for."""
    return tuple(gradient.new_empty(0) if each is None else each for each in _BACKWARD(gradient, *arguments))


_SETTINGS = (
    "SymInt[] stride, SymInt[] padding, SymInt[] dilation, bool transposed, SymInt[] output_padding, SymInt groups"
)
_SCHEMAS = {
    "convolution": (f"(Tensor input, Tensor weight, Tensor? bias, {_SETTINGS}) -> Tensor", _CONVOLUTION),
    "convolution_backward": (
        f"(Tensor gradient, Tensor input, Tensor weight, SymInt[]? bias_sizes, {_SETTINGS}, bool[3] output_mask)"
        " -> (Tensor, Tensor, Tensor)",
        _backward,
    ),
}
for _name, (_schema, _function) in _SCHEMAS.items():
    _LIBRARY.define(_name + _schema)
    _LIBRARY.impl(_name, _function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fds_dist::{_name}", _function)
