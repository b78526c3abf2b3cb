"""A run on disk: its folder, what is written down about the machine, and its checkpoints."""

from __future__ import annotations
