"""Ranks: the launcher's environment, the mesh, and the few collectives there are."""

from __future__ import annotations
