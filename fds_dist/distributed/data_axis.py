"""The `data` axis of the mesh: each rank takes a share of every batch and keeps a share of the state.

Shapes: D = weights, P = ranks on the axis, S = columns of a flat vector that a rank owns, ⌈D/P⌉ or fewer.

Gradients and Hessian-vector products of the shares are summed; the optimizer's state and all tangents are cut into
columns, of which each rank keeps its own (Rajbhandari et al., 2020, ZeRO: arXiv 1910.02054), and gathered where the
network needs them whole. A single rank is the axis of size 1: everything is whole and nothing is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor

from fds_dist.common.batch import Batch, Part, Share, common_rows, without_other_inputs
from fds_dist.common.faults import Fault, UserError
from fds_dist.distributed import collectives, exchanges
from fds_dist.distributed.in_flight import Sent, arrived

FEW = 2**16
"""Numbers that are sent whole to all ranks to be added there; of more, each rank adds some and sends the sums."""

ROWS = (
    "outputs with rows for each sample, from which the task's loss is computed (of a Hugging Face model output.logits, "
    "without labels in the inputs), or mesh.data=1"
)


@dataclass(frozen=True)
class DataAxis:
    """This rank's place on the axis, and what the ranks of the axis send each other."""

    rank: int = 0
    size: int = 1
    reference: Callable[[], dist.ProcessGroup | None] = lambda: None
    """To the group of these ranks. Weak: what holds the axis, such as a graph, must not keep a group that has ended."""
    whole_batch_norm: bool = True
    """Whether batch-norm uses the statistics of the whole batch; else those of this rank's part."""
    exchanges: bool = False
    """Whether the ranks of a sum send each other the summands and add them in rank order; else the backend adds. NCCL's
    order depends on where the ranks are, so that groups of ranks with the same summands may get other bits; Gloo's does
    not, and it sends less."""
    overlaps: bool = True
    """Whether a rank computes while what `send_gather` and `send_reduce` send is under way."""

    def __post_init__(self) -> None:
        if self.group is not None:
            exchanges.use(self.rank, self.size, self.reference)

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The group of these ranks; None for one rank, and after its end."""
        return self.reference()

    def in_order(self) -> DataAxis:
        """The same axis for a step that is traced: what is sent are operators of its graph, one after the other."""
        return replace(self, overlaps=False)

    @property
    def ahead(self) -> int:
        """How many further things a step should send before it waits for one."""
        return int(self.overlaps and self.size > 1)

    @property
    def _send(self) -> exchanges.Send:
        return exchanges.send if self.overlaps else exchanges.sent

    def split(self, batch: Batch, whole_inputs: bool = True) -> Part:
        """This rank's part of `batch`, whose tensors are [B, ...].

        Tensors with one row or no dimension stay whole. A batch with fewer samples than ranks, or with tensors of
        several lengths (see `common_rows`), is taken whole by all of them, each for an equal share.

        Args:
            whole_inputs: whether the part keeps the inputs of the other ranks' samples, for losses that read them.
        """
        if self.size == 1:
            return Part(batch)
        samples = common_rows(batch)
        if samples is None or samples < self.size:
            return Part(batch, Share(1 / self.size, gather=lambda output: collectives.replicate(output, self)))
        sizes = self.part_sizes(samples)
        first = sum(sizes[: self.rank])
        last = first + sizes[self.rank]
        each = self.gather_parts if self.whole_batch_norm else None

        def gather(output: Tensor) -> Tensor:
            rows, remainder = divmod(len(output) if output.dim() else 0, last - first)
            if not rows or remainder:
                problem = f"the network gives outputs {list(output.shape)} for {last - first} samples"
                if not output.dim():
                    problem = "the network gives a single number, such as a loss, and sees a part of each batch alone"
                raise UserError(Fault("mesh.data", problem, ROWS))
            return self.gather_outputs(output, [rows * size for size in sizes])

        share, rows = Share((last - first) / samples, None, each, gather), slice(first, last)
        without = None if whole_inputs else without_other_inputs(batch, rows)
        return Part(batch, replace(share, rows=rows)) if without is None else Part(without, share)

    def part_sizes(self, samples: int) -> list[int]:
        """How many of a batch's `samples` each rank takes, in rank order; they differ by at most one."""
        ends = [samples * place // self.size for place in range(self.size + 1)]
        return [end - start for start, end in pairwise(ends)]

    def columns(self, width: int) -> slice:
        """The columns of a vector over `width` weights that this rank owns."""
        if self.size == 1:
            return slice(0, width)
        share = -(-width // self.size)
        return slice(min(self.rank * share, width), min((self.rank + 1) * share, width))

    def gather(self, columns: Tensor, width: int) -> Tensor:
        """The whole [..., width], of which this rank has the `columns` [..., S]."""
        return self._gathered(columns, width, exchanges.sent).wait()

    def send_gather(self, columns: Tensor, width: int) -> Sent[Tensor]:
        """`gather`, under way when this returns."""
        return self._gathered(columns, width, self._send)

    def _gathered(self, columns: Tensor, width: int, send: exchanges.Send) -> Sent[Tensor]:
        if self.size == 1:
            return arrived(columns)
        share = -(-width // self.size)
        padded = torch.nn.functional.pad(columns, (0, share - columns.shape[-1]))
        return send("gather", padded, self.rank, self.size).then(
            lambda parts: parts.movedim(0, -2).flatten(-2)[..., :width]
        )

    def reduce(self, parts: Tensor) -> Tensor:
        """This rank's columns [..., S] of the sum of all ranks' `parts` [..., D]."""
        return self._reduced(parts, exchanges.sent).wait()

    def send_reduce(self, parts: Tensor) -> Sent[Tensor]:
        """`reduce`, under way when this returns."""
        return self._reduced(parts, self._send)

    def _reduced(self, parts: Tensor, send: exchanges.Send) -> Sent[Tensor]:
        if self.size == 1:
            return arrived(parts)
        width = parts.shape[-1]
        columns = self.columns(width)
        if not self.exchanges:  # gloo's reduce-scatter is several times slower than its all-reduce
            return send("add", parts, self.rank, self.size).then(lambda total: total[..., columns].clone())
        share = -(-width // self.size)
        padded = torch.nn.functional.pad(parts, (0, self.size * share - width))
        shares = padded.unflatten(-1, (self.size, share)).movedim(-2, 0)
        return send("exchange", shares, self.rank, self.size).then(
            lambda received: received.sum(0)[..., : columns.stop - columns.start]
        )

    def sum_of_own(self, parts: Tensor) -> Tensor:
        """The sum of what all ranks have for this rank [...], of their `parts` [P, ...], added in rank order."""
        if self.size == 1:
            return parts[0]
        return exchanges.received("exchange", parts, self.rank, self.size).sum(0)

    def all_parts(self, part: Tensor) -> Tensor:
        """All ranks' `part` [...] in rank order [P, ...]; no derivative."""
        return exchanges.received("gather", part, self.rank, self.size)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of all ranks' tensors, a new one unless this rank is alone; no derivative."""
        if self.size == 1:
            return tensor
        if self.exchanges:
            if tensor.numel() <= FEW:  # one exchange is faster than two
                return self.all_parts(tensor).sum(0)
            return self.gather(self.reduce(tensor.detach().flatten()), tensor.numel()).reshape(tensor.shape)
        return exchanges.received("add", tensor, self.rank, self.size)

    def differentiable_sum(self, tensor: Tensor) -> Tensor:
        """`sum`, of which derivatives of any order can be taken, forward and reverse, where all ranks take them."""
        return tensor if self.size == 1 else collectives.sum_of_parts(tensor, self)

    def gather_parts(self, part: Tensor) -> Tensor:
        """All ranks' `part` [...] in rank order [P, ...], differentiable as `differentiable_sum` is."""
        return collectives.gather_parts(part, self)

    def spread(self, tensor: Tensor) -> Tensor:
        """`tensor`, the same on all ranks, for use in each rank's own part: the parts' adjoints are summed."""
        return tensor if self.size == 1 else collectives.spread(tensor, self)

    def collect(self, tensor: Tensor) -> Tensor:
        """The sum of all ranks' parts, for use alike on all ranks: the adjoint, the same everywhere, goes to each."""
        return tensor if self.size == 1 else collectives.collect(tensor, self)

    def gather_outputs(self, part: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
        """The rows of all ranks' `part` [b, ...], in rank order, on every rank: [Σb, ...].

        From it every rank computes the same loss of the whole batch, whatever that loss is. Derivatives of any order
        can be taken, forward and reverse, where all ranks take them. An adjoint of the result must be the same on all
        ranks, as that of such a loss is: backward, each rank takes its own rows of it, nothing is added and nothing is
        sent. What reaches a rank's weights is thus its part of the gradient: the sum over ranks is the gradient of the
        loss, counted once (without the factor `Share.fraction`). A derivative by what the loss takes beside outputs,
        such as its own hyperparameters, is whole on every rank already and must not be summed.

        Args:
            part: may have another number of rows on each rank; the other dimensions and the dtype are the same.
                Integers and booleans are gathered without a derivative.
            sizes: each rank's number of rows, where it is known (`part_sizes`); else the ranks tell each other.
        """
        if self.size == 1:
            return part
        sizes = tuple(self._row_counts(part) if sizes is None else sizes)
        if not (part.is_floating_point() or part.is_complex()):
            return self.all_rows(part, sizes)
        return collectives.gather_rows(part, self, sizes)

    def _row_counts(self, part: Tensor) -> list[int]:
        return self.all_parts(part.new_full((), len(part), dtype=torch.int64)).tolist()

    def all_rows(self, part: Tensor, sizes: Sequence[int]) -> Tensor:
        """`gather_outputs`, without a derivative."""
        padded = part.new_zeros(max(sizes), *part.shape[1:])
        padded[: len(part)] = part.detach()
        return torch.cat([rows[:size] for rows, size in zip(self.all_parts(padded), sizes, strict=True)])
