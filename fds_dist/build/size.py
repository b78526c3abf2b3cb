"""How much a run asks for as a whole: steps, learned numbers, and memory for all tangents."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fds_dist.build.model import ModelBuilder
from fds_dist.build.space import bucket_faults
from fds_dist.common import limits
from fds_dist.common.faults import Fault
from fds_dist.common.flat import trainable_parameters
from fds_dist.common.memory import free_bytes
from fds_dist.common.words import bytes_text, counted
from fds_dist.config import Config
from fds_dist.distributed.mesh import MeshShape
from fds_dist.schedule.space import HyperparameterSpace

HOPELESS = 100
"""Times this machine's memory: no machine that the run might be planned for has so much."""


def horizon_faults(config: Config, space: HyperparameterSpace, horizons: Sequence[int]) -> list[Fault]:
    """Inner runs with fewer steps than buckets, or with more than any plan can have."""
    if max(horizons) <= limits.STEPS:
        return bucket_faults(config, space, min(horizons))
    key = "inner.steps" if config.inner.steps else "inner.epochs"
    problem = f"the horizon would have {max(horizons):,} inner steps"
    return [Fault(key, problem, f"at most {limits.STEPS:,} steps")]


def tangent_bytes(config: Config, learned: int, weights: int, shape: MeshShape) -> int:
    """The least that the tangents of the weights alone take on a rank: those of K learned numbers, D weights each."""
    tangents = {"reverse": 0, "random_directions": min(learned, config.random_directions.count)}
    item = 8 if config.dtype == "float64" else 4
    return -(-tangents.get(config.estimator, learned) // shape.tangent) * -(-weights // shape.data) * item


def memory_faults(
    config: Config, learned: int, builder: ModelBuilder, shape: MeshShape, device: torch.device
) -> list[Fault]:
    """Tangents that no machine can hold; with `estimator: auto`, reverse mode may take their place."""
    weights = sum(parameter.numel() for parameter in trainable_parameters(builder(0)).values())
    need, free = tangent_bytes(config, learned, weights, shape), free_bytes(device)
    if config.estimator == "auto" or need <= HOPELESS * free:
        return []
    problem = (
        f"{counted(learned, 'learned number')} × {counted(weights, 'weight')} would need {bytes_text(need)} of memory "
        f"on each rank for their tangents; {bytes_text(free)} are free here"
    )
    expected = "fewer buckets, a smaller size, or estimator: reverse"
    return [Fault("hyperparameters", problem, expected)]
