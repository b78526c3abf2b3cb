"""One inner step with a chunk of tangents as a graph of elementary operators, traced once and compiled."""

from __future__ import annotations

from fds_dist.tangents.compiled.function import ChunkTangents, StepFunction, StepInputs, StepOutputs
from fds_dist.tangents.compiled.steps import CompiledSteps
from fds_dist.tangents.compiled.trial import random_like, with_random_tangents
from fds_dist.tangents.compiled.ways import WAYS, Attempt, CompiledFunction, WaySettings

__all__ = [
    "WAYS",
    "Attempt",
    "ChunkTangents",
    "CompiledFunction",
    "CompiledSteps",
    "StepFunction",
    "StepInputs",
    "StepOutputs",
    "WaySettings",
    "random_like",
    "with_random_tangents",
]
