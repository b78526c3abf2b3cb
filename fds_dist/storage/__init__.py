"""A run on disk: its folder, its checkpoints, and the record of its machine."""

from __future__ import annotations
