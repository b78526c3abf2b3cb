"""What is learned: schedules, their buckets and groups, and the driver of an optimizer, which alone needs torch."""

from __future__ import annotations

from fds_dist.schedule.schedule import Schedule, load_schedule

__all__ = ["Schedule", "load_schedule"]
