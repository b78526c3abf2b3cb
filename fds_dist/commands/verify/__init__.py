"""The hypergradients of a task against independent derivatives."""

from __future__ import annotations
