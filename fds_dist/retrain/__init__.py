"""Training from scratch on the whole training set, by a learned schedule stretched to another number of epochs."""

from __future__ import annotations

from fds_dist.retrain.records import Block, EpochRecord, RetrainResult, SeedStart, Spread, Summary
from fds_dist.retrain.reporting import ConsoleReporter, Reporter
from fds_dist.retrain.settings import RetrainSettings, read_settings
from fds_dist.retrain.trainer import retrain
from fds_dist.retrain.wandb_reporter import WandbReporter

__all__ = [
    "Block",
    "ConsoleReporter",
    "EpochRecord",
    "Reporter",
    "RetrainResult",
    "RetrainSettings",
    "SeedStart",
    "Spread",
    "Summary",
    "WandbReporter",
    "read_settings",
    "retrain",
]
