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
from fds_dist.inner.problem import AT_ONCE, Problem
from fds_dist.tangents.methods import TrialPoint, choose_method
from fds_dist.tasks.augment import augmentation

LONG = 10_000
"""Inner steps, of all outer steps together, from which on `auto` compiles: a compilation takes one to three minutes,
and saves some 10 ms in the step of a small network and more in that of a large one. Along `mesh.data` `auto` stays
eager: nobody has timed it there."""


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
    steps, compiler = sum(horizons), has_compiler(problem.device)
    # On a CPU only a compiler is sure to be faster than tangents that are taken one by one.
    unasked = steps < LONG or data_ranks > 1 or (problem.device.type == "cpu" and not compiler)
    if requested == "off" or (requested == "auto" and unasked):
        return problem, ""
    if obstacle := _obstacle(problem):
        return problem, "" if requested == "auto" else f"tangents.compile has no effect: {obstacle}"
    way, chunk = requested, problem.tangents.chunk_size or max(1, min(AT_ONCE, len(starts)))
    remark = ""
    if requested == "auto":
        way = "inductor" if compiler else "trace"
        how = "compiled by inductor" if way == "inductor" else "traced (there is no compiler)"
        wait = "; the first one waits for the compiler, a minute or some" if way == "inductor" else ""
        remark = f"steps are {how}, {counted(chunk, 'tangent')} at a time: with {steps:,} inner steps this pays{wait}"
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
