"""Who is told how a search goes: the base class of a tracker, and all trackers together."""

from __future__ import annotations

from fds_dist.tracking.broadcast import Broadcast, Listener
from fds_dist.tracking.records import InnerBlock, OuterRecord, RunEnd, RunStart


class Tracker(Listener):
    """Something that is told how a search goes. A subclass overrides what it listens to."""

    def start(self, run: RunStart) -> None:
        """A search begins, or goes on after an interruption."""

    def inner(self, block: InnerBlock) -> None:
        """Some inner steps are done."""

    def outer(self, record: OuterRecord) -> None:
        """An outer step is done."""

    def finish(self, end: RunEnd) -> None:
        """The search has ended, well or not."""


class Trackers(Broadcast[Tracker]):
    """All trackers of a search; ranks other than 0 use ``Trackers([])``. Tracking does not stop a search: see
    `Broadcast`."""

    def start(self, run: RunStart) -> None:
        """See `Tracker`, as for all of these."""
        self._each(lambda tracker: tracker.start(run))

    def inner(self, block: InnerBlock) -> None:
        self._each(lambda tracker: tracker.inner(block))

    def outer(self, record: OuterRecord) -> None:
        self._each(lambda tracker: tracker.outer(record))

    def finish(self, end: RunEnd) -> None:
        self._each(lambda tracker: tracker.finish(end))
