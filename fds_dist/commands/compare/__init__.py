"""FDS beside greedy and black-box rivals, at equal compute and judged on fresh seeds."""

from __future__ import annotations
