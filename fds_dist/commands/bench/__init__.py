"""What this machine makes of the cost model."""

from __future__ import annotations
