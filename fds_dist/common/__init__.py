"""What every floor uses. Imports nothing else of this package."""

from __future__ import annotations
