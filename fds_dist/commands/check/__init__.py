"""What `optimize` would do and cost, without training."""

from __future__ import annotations
