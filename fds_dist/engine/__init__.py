"""The engine: one inner run with its tangents, estimators of the hypergradient, and the outer loop around them."""

from __future__ import annotations
