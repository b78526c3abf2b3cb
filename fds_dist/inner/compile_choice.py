"""How a run takes its steps, `tangents.compile`: whether they can be compiled, whether that pays, and in what chunks.

The choice depends on the config alone, so that it is the same on every rank and in a run that goes on.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace

import torch

from fds_dist.common.faults import UserError
from fds_dist.common.words import counted
from fds_dist.inner.plan import make_plan
from fds_dist.inner.problem import GPU_CHUNK, Problem
from fds_dist.tangents.methods import TrialPoint, choose_method
from fds_dist.tasks.augment import augmentation

LONG = 10_000
"""Inner steps, of all outer steps together, from which on `auto` compiles on a GPU: a compilation takes one to three
minutes, and saves some 10 ms in the step of a small network and more in that of a large one. On a CPU `auto` stays
eager: chunks that fit any number of ranks are small there, and padding and repeated plain steps cost what is gained.
Along `mesh.data` it does, too: there no GPU has timed it."""
RANKS = (1, 2, 4)
"""Numbers of ranks for which a chunk should be good: it is the same for all, or the bits would not be."""
CPU_CHUNKS = range(1, 9)
"""Sizes to choose from on a CPU."""


def with_compile(
    problem: Problem, requested: str, horizons: Sequence[int], starts: Sequence[int], data_ranks: int
) -> tuple[Problem, str]:
    """The problem with its way to take steps, and a remark on it ("" where there is nothing to say).

    Args:
        requested: `tangents.compile` of the config.
        horizons: inner steps of each outer step.
        starts: the first step of each tangent over the longest horizon.
        data_ranks: ranks that share out each batch.
    """
    steps = sum(horizons)
    unasked = steps < LONG or problem.device.type == "cpu" or data_ranks > 1
    if requested == "off" or (requested == "auto" and unasked):
        return problem, ""
    if obstacle := _obstacle(problem):
        return problem, "" if requested == "auto" else f"tangents.compile has no effect: {obstacle}"
    way, chunk = requested, problem.tangents.chunk_size or chunk_for(starts, max(horizons), problem.device)
    remark = ""
    if requested == "auto":
        way = "inductor" if has_compiler(problem.device) else "trace"
        how = "compiled by inductor" if way == "inductor" else "traced (there is no compiler)"
        remark = f"steps are {how}, {counted(chunk, 'tangent')} at a time: with {steps:,} inner steps this pays"
    elif data_ranks == 1 and problem.device.type == "cpu" and any((place + 1) % chunk for place in _live(starts)):
        remark = (
            f"tangents are taken {chunk} at a time, fewer in a chunk filled up with zeros, or in a step of their own, "
            "which is made once zeros have cost as much time as making it takes and taken where it has the same bits"
        )
    # What ranks send each other in the midst of a step is no part of a CUDA graph.
    cuda_graph = problem.tangents.cuda_graph and data_ranks == 1
    options = replace(problem.tangents, compile=way, compiled_chunk=chunk, cuda_graph=cuda_graph)
    return replace(problem, tangents=options), remark


def _obstacle(problem: Problem) -> str:
    """What steps cannot be compiled with, or ""."""
    if augmentation(problem.task) is not None:
        return "the random numbers of the task's augment are drawn outside of PyTorch's generators"
    return ""


def without_compile_where_wrong(problem: Problem, point: TrialPoint) -> tuple[Problem, str]:
    """The problem with eager steps, and a remark, where the method of compiled steps fails or is wrong at `point`."""
    if problem.tangents.compile == "off":
        return problem, ""
    reason = "they are taken by difference of gradients" if problem.tangents.method == "difference" else ""
    try:
        if not reason:
            choose_method("jvp", point)
    except UserError as error:
        reason = error.faults[0].problem
    if not reason:
        return problem, ""
    eager = replace(problem, tangents=replace(problem.tangents, compile="off"))
    return eager, f"steps are taken eagerly, not compiled: {reason}"


def has_compiler(device: torch.device) -> bool:
    """Whether inductor finds what it compiles with: a C++ compiler, and on a GPU Triton too."""
    names = (os.environ.get("CXX", ""), "g++", "clang++", "c++")
    found = any(shutil.which(name) for name in names if name)
    return found and (device.type == "cpu" or importlib.util.find_spec("triton") is not None)


def chunk_for(starts: Sequence[int], horizon: int, device: torch.device) -> int:
    """C: tangents per chunk of a compiled step.

    On a CPU, the C with the least time of the busiest rank, as a
    share of the best possible, over some numbers of ranks. A GPU takes as many as there are at once, up to `GPU_CHUNK`:
    small kernels take the same time for one tangent and for many.
    """
    if not starts:
        return 1
    if device.type != "cpu":
        return min(GPU_CHUNK, len(starts))
    counts = [ranks for ranks in RANKS if ranks <= len(starts)]
    return min(CPU_CHUNKS, key=lambda chunk: sum(_share(starts, horizon, chunk, ranks) for ranks in counts))


def _live(starts: Sequence[int]) -> list[int]:
    """The places of those tangents, in order of their starts, after which a while passes until the next begins."""
    begun = sorted(starts)
    return [place for place, start in enumerate(begun) if place + 1 == len(begun) or begun[place + 1] > start]


def _share(starts: Sequence[int], horizon: int, chunk: int, ranks: int) -> float:
    """Time of the busiest rank with chunks of `chunk`, over that without padding and without repeated plain steps."""
    plan = make_plan(starts, horizon, ranks)
    return max(plan.cost(rank, chunk) / plan.cost(rank) for rank in range(ranks))
