"""The outer loop and the rules by which it moves λ along the hypergradients."""

from __future__ import annotations
