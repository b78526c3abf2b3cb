"""Noise of hypergradients, and how wide windows of sharing should be for it (FDS, arXiv 2007.07869, theorem 4.1)."""

from __future__ import annotations
