"""What defines an inner run and what each rank has chosen or built by itself, as facts that ranks can compare."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Sized
from typing import Any

import torch
from torch import Tensor

from fds_dist.common.batch import Batch, described
from fds_dist.common.words import counted
from fds_dist.distributed.fingerprint import batch_fingerprint, fingerprint
from fds_dist.inner.data_checks import FIRST_ASKED
from fds_dist.inner.problem import Problem

ROUNDING = 3
"""Significant digits to which initial weights are compared where `broadcast` heals rounding: float32 has 7, and sums
over many weights lose two or three."""


def run_facts(problem: Problem, horizons: Sequence[int], mode: str) -> dict[str, Any]:
    """Facts of a problem and of the lengths of its inner runs; see `require_alike`.

    Args:
        mode: `consistency.mode`. Weights and batches are compared bit for bit where it is `verify`; the weights up to
            rounding where it is `broadcast`, which heals that; neither where it is `off`.
    """
    space, tangents = problem.space, problem.tangents
    facts: dict[str, Any] = {
        "device": problem.device.type,
        "tangents": {
            "method": tangents.method,
            "chunk_size": problem.chunk_size,
            "compile": f"{tangents.compile}, {counted(tangents.compiled_chunk, 'tangent')} at once",
        },
        "learned numbers": {owner.name: f"{owner.buckets} × {owner.size}" for owner in space.learned},
        "learned numbers in order": list(map(str, space.elements)),
        "first values": dict(zip(map(str, space.elements), space.initial(), strict=True)),
        "fixed values": dict(space.fixed),
        "task.steps_per_epoch": problem.task.steps_per_epoch,
        "inner steps of each outer step": list(horizons),
        "model": {"live buffers": list(problem.live_buffers), "parameters without a part": list(problem.untouched)},
    }
    facts |= weight_facts(problem, mode == "broadcast") if mode != "off" else {}
    return facts | (batch_facts(problem) if mode != "off" else {})


def weight_facts(problem: Problem, rounded: bool) -> dict[str, Any]:
    """The names, shapes and initial values of weights and buffers."""
    network = problem.network(0)
    buffers = network.initial_buffers
    tell: Callable[[Tensor], str] = rounded_fingerprint if rounded else short_fingerprint
    return {
        "parameters": {
            name: str(list(view.shape)) for name, view in network.layout.views(network.initial_weights).items()
        },
        "initial weights": tell(network.initial_weights),
        "initial buffers": {name: tell(buffer) for name, buffer in buffers.items()},
    }


def batch_facts(problem: Problem) -> dict[str, Any]:
    """The first training batch and the first validation batch, and the number of those that can be counted."""
    return {f"task.{source}": first_batch(problem, source, *arguments) for source, arguments in FIRST_ASKED.items()}


def first_batch(problem: Problem, source: str, *arguments: int) -> str:
    """`first of 4 batches ([8, 3] float32, [8] int64) 5f0c…`"""
    batches: Iterable[object] = getattr(problem.task, source)(*arguments)
    number = f"{len(batches)} batches" if isinstance(batches, Sized) else "the batches"
    batch = next(problem.batches_of(source, *arguments))
    return f"first of {number} {batch_text(batch, problem.device)}"


def batch_text(batch: Batch, device: torch.device) -> str:
    """`([8, 3] float32, [8] int64) 5f0c…`: what a batch is, and a fingerprint of it."""
    return f"{described(batch)} {short_fingerprint(batch_fingerprint(batch, device))}"


def short_fingerprint(tensor: Tensor) -> str:
    """16 hexadecimal digits; see `fingerprint`."""
    return f"{int(fingerprint(tensor)) % 2**64:016x}"


def rounded_fingerprint(tensor: Tensor) -> str:
    """Two sums of `tensor`, to `ROUNDING` digits: other rounding leaves them alone, other values do not."""
    numbers = tensor.detach().double().flatten().cpu()
    if numbers.is_complex() or not len(numbers):
        return str(list(tensor.shape))
    ramp = torch.linspace(1.0, 2.0, len(numbers), dtype=torch.float64)
    return " ".join(f"{float(number):.{ROUNDING}g}" for number in (numbers.norm(), (numbers.abs() * ramp).sum()))
