"""What is learned: schedules, their buckets and groups. Only the driver of an optimizer needs torch."""

from __future__ import annotations

from fds_dist.schedule.schedule import Schedule, load_schedule

__all__ = ["Schedule", "load_schedule"]
