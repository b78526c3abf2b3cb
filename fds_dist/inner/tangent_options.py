"""How the tangents of an inner problem are computed."""

from __future__ import annotations

from dataclasses import dataclass, field

from fds_dist.tangents.step import Pruning

KEPT_BYTES = 2**30
"""What the states of a reverse sweep may take where nobody has said what there is."""


@dataclass(frozen=True)
class TangentOptions:
    """How tangents are computed."""

    method: str
    clip_hvp: float | None = None
    pruning: Pruning = field(default_factory=Pruning)
    chunk_size: int | None = None
    """Tangents per Hessian-vector product; None means auto."""
    twice: bool = True
    """Whether the network is made for second derivatives, as exact methods need it; see `Network`."""
    kept_bytes: int = KEPT_BYTES
    """Bytes in which a reverse sweep keeps the state of every step, if all of them fit."""
    compile: str = "off"
    """`off`: the steps run eagerly; `trace`: as one graph of elementary operators; `inductor`: as that, compiled."""
    compiled_chunk: int = 1
    """Tangents in a chunk of a compiled step, the same on any number of ranks."""
    cuda_graph: bool = True
    """Whether a traced or compiled step on a GPU is captured as a CUDA graph."""
