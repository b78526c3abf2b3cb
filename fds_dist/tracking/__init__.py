"""Tells people and services how a run goes. Everything here happens on rank 0 only."""

from __future__ import annotations

from fds_dist.tracking.records import InnerBlock, OuterRecord, RunEnd, RunStart
from fds_dist.tracking.trackers import Tracker, Trackers

__all__ = ["InnerBlock", "OuterRecord", "RunEnd", "RunStart", "Tracker", "Trackers"]
