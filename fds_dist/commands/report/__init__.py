"""A run's folder as one self-contained page with figures."""

from __future__ import annotations
