"""A run's folder as one self-contained page with figures."""

from __future__ import annotations

from fds_dist.report.contents import RunContents, read_run
from fds_dist.report.page import PAGE, write_report

__all__ = ["PAGE", "RunContents", "read_run", "write_report"]
