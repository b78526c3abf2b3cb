"""The sections of the config that say how hypergradients are computed."""

from __future__ import annotations

from typing import Literal

from fds_dist.common.kinds import AutoCount, Clip, Count, Ratio, UnitInterval
from fds_dist.config.sections import Section


class PruneConfig(Section):
    """Steps that leave a tangent unchanged, counted within the window of its bucket."""

    mode: Literal["alternate", "truncate"] = "alternate"
    """alternate computes the first step of each period; truncate skips the first part of each window."""

    ratio: Ratio = 0.0
    """The fraction of steps that is skipped."""


class TangentsConfig(Section):
    """How forward-mode tangents are computed."""

    method: Literal["auto", "jvp", "double_backward", "difference"] = "auto"
    """How Hessian-vector products are computed: two exact ways, or differences of gradients. auto: one that works."""

    clip_hvp: Clip = None
    """Elementwise bound on Hessian-vector products; null: none."""

    prune: PruneConfig = PruneConfig()
    """Tangent updates to skip."""

    chunk_size: AutoCount = "auto"
    """Tangents per batched Hessian-vector product. auto: one on a CPU; on a GPU up to 16, as many as free memory holds;
    in compiled steps up to 16, on a CPU as many as fit into half of free memory, or fewer where calls of fewer were
    faster in all. Where a rank runs out of memory before the first step, all ranks take half as many, and say so."""

    compile: Literal["auto", "off", "trace", "inductor"] = "auto"
    """How a step with its tangents is taken: operator by operator (off), as one traced graph (trace), or as that graph
    compiled (inductor). auto: compiled where the search is long enough for it to pay (10,000 inner steps in all), a CPU
    has a C++ compiler and memory for two tangents at once; else off, as along `mesh.data`."""

    cuda_graph: Literal["auto", "off"] = "auto"
    """Whether a traced or compiled step on a GPU is captured as a CUDA graph, which starts all its kernels at once;
    not along `mesh.data`."""


class RandomDirectionsConfig(Section):
    """Settings of the estimator random_directions."""

    count: Count = 8
    """R, the tangents in place of K, one per learned number: the error of a hypergradient has sqrt(K/R - 1) of its
    length."""


class ReverseConfig(Section):
    """Settings of the estimator reverse."""

    memory_share: UnitInterval = 0.25
    """The share of a rank's free memory for the states of an inner run. Where those of all T steps fit, all are kept,
    and a step costs 4 plain steps; else every ⌈√T⌉-th is kept, the others are computed again, and a step costs 5."""


class GreedyConfig(Section):
    """Settings of the estimator greedy."""

    discount: UnitInterval = 0.0
    """The share of a tangent that is kept from step to step: 0 hypergradient descent, 1 RTHO, in between MARTHE."""
