"""Sweeps: files in the format of Weights & Biases, checked before anything starts, and run with or without W&B."""

from __future__ import annotations
