"""One inner step with a chunk of tangents as a graph of elementary operators, traced once and compiled."""

from __future__ import annotations

from fds_dist.tangents.compiled.function import ChunkTangents, StepFunction, StepInputs, StepOutputs
from fds_dist.tangents.compiled.steps import WAYS, CompiledSteps
from fds_dist.tangents.compiled.trial import with_random_tangents

__all__ = [
    "WAYS",
    "ChunkTangents",
    "CompiledSteps",
    "StepFunction",
    "StepInputs",
    "StepOutputs",
    "with_random_tangents",
]
