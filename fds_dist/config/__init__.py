"""The config: its schema, reading it with every fault at once, and writing it resolved."""

from __future__ import annotations

from fds_dist.config.estimators import GreedyConfig, PruneConfig, TangentsConfig
from fds_dist.config.hyperparameters import GroupOverride, HyperparameterConfig
from fds_dist.config.inner import InnerConfig
from fds_dist.config.load import Draft, Faults, dump_config, load_config, read_draft
from fds_dist.config.outer import OuterConfig
from fds_dist.config.ranks import CheckpointConfig, ConsistencyConfig, DistributedConfig, MeshConfig
from fds_dist.config.schema import Config, ModelConfig, TaskConfig
from fds_dist.config.tracking import TrackingConfig, WandbConfig

__all__ = [
    "CheckpointConfig",
    "Config",
    "ConsistencyConfig",
    "DistributedConfig",
    "Draft",
    "Faults",
    "GreedyConfig",
    "GroupOverride",
    "HyperparameterConfig",
    "InnerConfig",
    "MeshConfig",
    "ModelConfig",
    "OuterConfig",
    "PruneConfig",
    "TangentsConfig",
    "TaskConfig",
    "TrackingConfig",
    "WandbConfig",
    "dump_config",
    "load_config",
    "read_draft",
]
