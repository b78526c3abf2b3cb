"""Learns schedules: the outer loop with its folder, trackers and checkpoints."""

from __future__ import annotations
