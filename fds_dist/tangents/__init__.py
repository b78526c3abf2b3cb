"""Tangents of the inner run: Hessian-vector products and the tangent of the optimizer's update."""

from __future__ import annotations

from fds_dist.common.batch import Batch, Part
from fds_dist.tangents.network import Buffers, Network, TrainingLoss
from fds_dist.tangents.parts import AccumulatedPoint, Asked, Chunk, MicroBatch, SplitPoint, SummedPoint
from fds_dist.tangents.point import Point, PointInputs, PointMaker
from fds_dist.tangents.products import EXACT_METHODS, METHODS
from fds_dist.tangents.step import (
    Primals,
    Update,
    WeightGroups,
    gradient_tangents,
    inner_update,
    remembered,
    tangent_step,
)

__all__ = [
    "EXACT_METHODS",
    "METHODS",
    "AccumulatedPoint",
    "Asked",
    "Batch",
    "Buffers",
    "Chunk",
    "MicroBatch",
    "Network",
    "Part",
    "Point",
    "PointInputs",
    "PointMaker",
    "Primals",
    "SplitPoint",
    "SummedPoint",
    "TrainingLoss",
    "Update",
    "WeightGroups",
    "gradient_tangents",
    "inner_update",
    "remembered",
    "tangent_step",
]
