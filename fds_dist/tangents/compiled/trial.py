"""Whether a compiled step is right, and whether a row's bits depend on the other rows: tried on real batches.

A compiler may be wrong without a word, so a compiled step is compared with the eager one before it is believed. Both
round, and differently. Where a ReLU stands within rounding of its kink, the two may take different sides, and a product
then jumps. How far this carries on a network is measured: by how far the eager step itself moves when its weights move
by the rounding of a sum.

Shapes: C = tangents in a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from fds_dist.tangents.compiled.function import StepInputs, StepOutputs

Step = Callable[[Any], Any]
"""A function of a named tuple with `weights`, such as `StepInputs`, to another; random numbers are the same in every
call."""

ROUNDINGS = 16
"""By how many roundings weights are moved: what another order of summation makes of a sum of some thousand terms."""
ROOM = 8
"""How many times as far as the eager step moves then the compiled one may be from it: moves are along one direction."""
LEAST = 256
"""Roundings of each result that are allowed in any case: a long sum in another order."""
MOST = 1e-2
"""Of each result, relative: what is further off is not believed, however much the eager step moves. The one wrong
compilation that was met, of half a LeNet, was off by 0.12."""


def with_random_tangents(inputs: StepInputs) -> StepInputs:
    """The same step with tangents and directions that are no zeros anywhere, the same on every rank."""
    tangents, directions = random_like((inputs.tangents, inputs.directions))
    return inputs._replace(tangents=tangents, directions=directions)


def random_like(tensors: Any) -> Any:
    """Random tensors in the place of those in a pytree."""
    random = torch.Generator().manual_seed(0)
    return tree_map(lambda tensor: torch.randn(tensor.shape, generator=random, dtype=torch.float64).to(tensor), tensors)


def difference(step: Step, reference: Step, inputs: Any, coarse: bool = False) -> str:
    """What `step` gets wrong of the step that `reference` takes from `inputs`, in words; "" where they agree.

    Agreement is that of each resulting tensor: |ours − reference| ≤ max(LEAST·ε·|reference|, ROOM·|move|), where `move`
    is what `reference` changes by with weights moved by ROUNDINGS·ε, and never more than MOST·|reference|.

    Args:
        coarse: whether products round to fewer bits than the tensors have (autocast, TF32): to MOST·|reference| alone.
    """
    exact, epsilon = reference(inputs), torch.finfo(inputs.weights.dtype).eps
    signs = torch.randint(2, inputs.weights.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    nudged = inputs.weights * (1 + ROUNDINGS * epsilon * signs.to(inputs.weights))
    moved = reference(inputs._replace(weights=nudged))
    moves = [_distance(near, true) for _, near, true in _named(moved, exact)]
    del moved  # results are as large as all tangents of a chunk
    for (name, mine, true), move in zip(_named(step(inputs), exact), moves, strict=True):
        size, error = _distance(true), _distance(mine, true)
        limit = MOST * size if coarse else min(max(LEAST * epsilon * size, ROOM * move), MOST * size)
        if not error <= limit:
            return f"{name} differ by {error / size if size else error:.1e} from the eager step's"
    return ""


BLOCK = 2**20
"""Numbers that are converted to float64 at once."""


def _distance(tensor: Tensor, other: Tensor | None = None) -> float:
    """The norm of the difference, or of `tensor` alone, in float64."""
    blocks = tensor.flatten().split(BLOCK)
    others = [0.0] * len(blocks) if other is None else other.flatten().split(BLOCK)
    squares = [(block.double() - part).square().sum() for block, part in zip(blocks, others, strict=True)]
    return float(torch.stack(squares).sum().sqrt())


def _named(*outputs: Any) -> Sequence[tuple[Any, ...]]:
    """The tensors of some results of a step side by side, with what each is called."""
    names = {"optimizer": "the optimizer's state", "by_h": "the derivatives by h"}
    named = []
    for field in outputs[0]._fields:
        columns = [tree_leaves(getattr(output, field)) for output in outputs]
        named += [(names.get(field, f"the {field}"), *row) for row in zip(*columns, strict=True)]
    return named


def rows_are_independent(step: Step, inputs: StepInputs) -> bool:
    """Whether the bits of a tangent's row depend neither on its place in the chunk nor on the other rows.

    So tangents can be shared out among ranks in any way. Every row is tried in every place, and each half of the rows
    beside zeros; the state must have the same bits throughout.
    """
    count = len(inputs.directions)
    whole = step(inputs)
    same = []  # of every trial: ranks that take a step together make all of them, whatever one of them sees
    for shift in range(1, count):

        def shifted(tensor: Tensor, shift: int = shift) -> Tensor:
            return tensor.roll(shift, 0)

        same.append(_same_bits(whole, step(_of_rows(inputs, shifted)), shifted))
    for rows in (slice(0, count // 2), slice(count // 2, count)):

        def beside_zeros(tensor: Tensor, rows: slice = rows) -> Tensor:
            kept = torch.zeros_like(tensor)
            kept[rows] = tensor[rows]
            return kept

        def in_place(tensor: Tensor, rows: slice = rows) -> Tensor:
            return tensor[rows]

        same.append(_same_bits(whole, step(_of_rows(inputs, beside_zeros)), in_place, in_place))
    return all(same)


def has_same_bits(step: Step, whole: StepOutputs, inputs: StepInputs, count: int) -> bool:
    """Whether so many tangents get the bits that `whole`, the full step, gave them: the first ones, and the last."""

    def first(tensor: Tensor) -> Tensor:
        return tensor[:count]

    def last(tensor: Tensor) -> Tensor:
        return tensor[-count:]

    same = [_same_bits(whole, step(_of_rows(inputs, part)), part) for part in (first, last)]
    return all(same)  # of both trials, as above


def with_tangents(inputs: StepInputs, count: int) -> StepInputs:
    """The step with so many tangents, all of them zero."""
    return _of_rows(inputs, lambda tensor: tensor.new_zeros(count, *tensor.shape[1:]))


def _of_rows(inputs: StepInputs, change: Callable[[Tensor], Tensor]) -> StepInputs:
    tangents: Any = tree_map(change, inputs.tangents)
    return inputs._replace(tangents=tangents, directions=change(inputs.directions))


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


def _same_bits(
    first: StepOutputs,
    second: StepOutputs,
    of_first: Callable[[Tensor], Tensor] = _unchanged,
    of_second: Callable[[Tensor], Tensor] = _unchanged,
) -> bool:
    """Whether two steps gave the same, of the tangents what the functions make of them, tensor by tensor."""
    states = (tree_leaves(each._replace(tangents=())) for each in (first, second))
    tangents = zip(tree_leaves(first.tangents), tree_leaves(second.tangents), strict=True)
    return all(map(torch.equal, *states)) and all(torch.equal(of_first(one), of_second(two)) for one, two in tangents)
