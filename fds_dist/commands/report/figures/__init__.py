"""The figures of a report. Each is a function from runs to a list of panels, which is empty where there is nothing to
draw.
"""

from __future__ import annotations
