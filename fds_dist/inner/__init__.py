"""One inner run with its tangents, and the estimators of its hypergradient."""

from __future__ import annotations
