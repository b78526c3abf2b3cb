"""A function of tensors as a graph of PyTorch's elementary operators: traced once, then run as it is or compiled.

The graph has no Python left in it: no transforms, no layers, no views of flat vectors to be made. Tensors that the
function reads beside its arguments are of two kinds. Those of the network's module, such as frozen parameters, become
arguments, since the next inner run has another module; all others are constants of the graph.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from fds_dist.common.precision import HALVES
from fds_dist.distributed.exchanges import in_order
from fds_dist.tangents.compiled.any_number import NotAlike, generalized, of_any_size, with_opaque_convolutions
from fds_dist.tangents.compiled.zeros import drop_zeros

Flat = Callable[..., Sequence[Tensor]]
"""(tensors) → tensors"""


@dataclass(frozen=True)
class Graph:
    """A traced function of a pytree, whose leaves are tensors or plain values."""

    run: Flat
    """Of the tensors among the arguments, followed by those of the module."""
    tensors_of_module: tuple[str, ...]
    """Their qualified names."""
    result: TreeSpec
    draws: bool
    """Whether random numbers are drawn."""
    module: GraphModule
    rows: tuple[int, ...] = ()
    """Which arguments of `run` have one row per tangent, where there may be any number of them."""

    def __call__(self, arguments: Any, module: nn.Module) -> Any:
        """The function's result for `arguments` of the same structure and shapes as those of the trace."""
        with torch.no_grad():
            results = self.run(*self.tensors(arguments, module))
        return tree_unflatten(list(results), self.result)

    def tensors(self, arguments: Any, module: nn.Module) -> list[Tensor]:
        """What `run` gets: the tensors in `arguments`, and those of the module."""
        of_module = _tensors_of(module) if self.tensors_of_module else {}
        given = [leaf for leaf in tree_flatten(arguments)[0] if isinstance(leaf, Tensor)]
        return [*given, *(of_module[name].detach() for name in self.tensors_of_module)]


def trace(
    function: Callable[[Any], Any],
    arguments: Any,
    module: nn.Module,
    with_tangents: Callable[[int], Any] | None = None,
) -> Graph:
    """The graph of `function` of one pytree, a pure function of its tensors and of those of `module`.

    Args:
        with_tangents: the arguments with so many tangents instead; given, the graph takes any number of them, if there
            is one that does.

    Raises:
        Exception: whatever stops the trace, such as a branch on the value of a tensor.
    """
    if with_tangents is None:
        return _traced(function, arguments, module)
    few, many = (_traced(function, with_tangents(count), module) for count in (2, 3))
    try:
        merged, rows = generalized(few.module, many.module)
    except NotAlike:
        return _traced(function, arguments, module)
    return replace(many, run=merged, module=merged, rows=rows)


def _traced(function: Callable[[Any], Any], arguments: Any, module: nn.Module) -> Graph:
    leaves, spec = tree_flatten(arguments)
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    structure: list[TreeSpec] = []

    def flat(*tensors: Tensor) -> list[Tensor]:
        values = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            values[place] = tensor
        results, result_spec = tree_flatten(function(tree_unflatten(values, spec)))
        structure.append(result_spec)
        return results

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch about its own inside
        # Fake tensors have no values: what branches on a value stops here, instead of becoming a constant.
        examples = [torch.empty_like(leaves[place]) for place in places]  # one tensor may be two arguments
        traced = make_fx(flat, tracing_mode="fake", _allow_non_fake_inputs=True)(*examples)
    names = _lift(traced, module)
    _replace_unread(traced)
    in_order(traced.graph.nodes)
    draws = any(_is_random(node.target) for node in traced.graph.nodes)
    drop_zeros(traced)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    return Graph(traced, names, structure[0], draws, traced)


def compiled(graph: Graph, arguments: Any, module: nn.Module) -> Graph:
    """The same graph compiled by inductor, which keeps what it has compiled in a folder (`TORCHINDUCTOR_CACHE_DIR`).

    Raises:
        Exception: whatever stops the compiler, such as a missing one.
    """
    from torch import _inductor as inductor

    source, examples = graph.module, [tensor.clone() for tensor in graph.tensors(arguments, module)]
    options = inductor_options(graph, examples[0].device)
    if graph.rows:
        source, examples = with_opaque_convolutions(source), of_any_size(examples, graph.rows)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run: Any = inductor.compile(source, list[Any](examples), options)
    return replace(graph, run=run)


def inductor_options(graph: Graph, device: torch.device) -> dict[str, Any]:
    """What inductor is told, as far as this PyTorch knows it."""
    from torch._inductor import config

    # Random numbers are those of the eager kernels, so that the same seed gives the same masks; kernels are not chosen
    # by their times, which differ by rank.
    options = {"fallback_random": True, "deterministic": True}
    if device.type == "cuda":
        # Kernels that do not depend on each other become one. Tensor cores want channels last; where there are none,
        # that only costs a copy of each tensor that a convolution reads.
        options |= {"combo_kernels": True, "layout_optimization": _uses_tensor_cores(graph.module)}
    return {name: value for name, value in options.items() if hasattr(config, name)}


def _uses_tensor_cores(traced: GraphModule) -> bool:
    """Whether convolutions compute with fewer bits than float32 has."""
    if torch.backends.cudnn.conv.fp32_precision == "tf32":  # type: ignore[attr-defined]
        return True
    results = [node.meta["val"] for node in traced.graph.nodes if node.target is torch.ops.aten.convolution.default]
    return any(result.dtype in HALVES for result in results)


def _replace_unread(traced: GraphModule) -> None:
    """Puts an element of an argument in the place of memory that is allocated and never read.

    A convolution's backward pass is given some tensors for their shapes alone. The transforms spread an element that
    they allocate over each of these, and inductor starts a kernel to fill it.
    """
    arguments = [node for node in traced.graph.nodes if node.op == "placeholder" and node.meta["val"].numel()]
    lenders = {_kind(node.meta["val"]): node for node in reversed(arguments)}
    for node in [node for node in traced.graph.nodes if node.target is torch.ops.aten.new_empty.default]:
        lender = lenders.get(_kind(node.meta["val"]))
        if lender is None or node.meta["val"].dim() or not _is_unread(node):
            continue
        with traced.graph.inserting_before(node):
            element = traced.graph.call_function(torch.ops.aten.as_strided.default, (lender, [], [], 0))
        element.meta = dict(node.meta)
        node.replace_all_uses_with(element)
        traced.graph.erase_node(node)


def _kind(tensor: Tensor) -> tuple[torch.dtype, torch.device]:
    return tensor.dtype, tensor.device


def _is_unread(node: Node) -> bool:
    """Whether convolutions' backward passes alone get `node`, spread over a shape: they read no unspecified memory."""
    readers = [reader for spread in node.users for reader in spread.users]
    return all(spread.target is torch.ops.aten.expand.default for spread in node.users) and all(
        reader.target is torch.ops.aten.convolution_backward.default for reader in readers
    )


def _lift(traced: GraphModule, module: nn.Module) -> tuple[str, ...]:
    """Makes arguments of the constants of `traced` that are tensors of `module`; returns their names, in order."""
    names = {id(tensor): name for name, tensor in _tensors_of(module).items()}
    lifted: dict[str, Any] = {}
    placeholders = [node for node in traced.graph.nodes if node.op == "placeholder"]
    for node in [node for node in traced.graph.nodes if node.op == "get_attr"]:
        tensor = getattr(traced, str(node.target), None)
        name = names.get(id(tensor))
        if name is None:
            continue
        if name not in lifted:
            with traced.graph.inserting_after(placeholders[-1]):
                lifted[name] = traced.graph.placeholder(f"module_tensor_{len(lifted)}")
            lifted[name].meta = dict(node.meta)
            placeholders.append(lifted[name])
        node.replace_all_uses_with(lifted[name])
        traced.graph.erase_node(node)
    return tuple(lifted)


def _tensors_of(module: nn.Module) -> Mapping[str, Tensor]:
    """The parameters and buffers of `module` by qualified name."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _is_random(operator: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(operator, "tags", ())
