"""Tells people and services how a run goes. Everything here happens on rank 0 alone."""

from __future__ import annotations

from fds_dist.tracking.callbacks import Callback, Stop
from fds_dist.tracking.records import InnerBlock, OuterRecord, RunEnd, RunStart
from fds_dist.tracking.trackers import Tracker, Trackers

__all__ = ["Callback", "InnerBlock", "OuterRecord", "RunEnd", "RunStart", "Stop", "Tracker", "Trackers"]
