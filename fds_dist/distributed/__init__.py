"""Ranks: the launcher's environment, the mesh, who owns which tangent, and the few collectives there are."""

from __future__ import annotations
