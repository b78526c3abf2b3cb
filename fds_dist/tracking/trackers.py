"""The base class of trackers, which follow a search, and the broadcast to all of them."""

from __future__ import annotations

from fds_dist.tracking.broadcast import Broadcast, Listener
from fds_dist.tracking.records import InnerBlock, OuterRecord, RunEnd, RunStart


class Tracker(Listener):
    """Receives the events of a search. A subclass overrides the methods of the events that it needs."""

    def start(self, run: RunStart) -> None:
        """A search begins, or continues after an interruption."""

    def inner(self, block: InnerBlock) -> None:
        """Some inner steps are done."""

    def outer(self, record: OuterRecord) -> None:
        """An outer step is done."""

    def finish(self, end: RunEnd) -> None:
        """The search has ended, successfully or not."""


class Trackers(Broadcast[Tracker]):
    """All trackers of a search; ranks other than 0 use ``Trackers([])``. A failing tracker does not stop the search:
    see `Broadcast`."""

    def start(self, run: RunStart) -> None:
        """See `Tracker`, as for all of these."""
        self._each(lambda tracker: tracker.start(run))

    def inner(self, block: InnerBlock) -> None:
        self._each(lambda tracker: tracker.inner(block))

    def outer(self, record: OuterRecord) -> None:
        self._each(lambda tracker: tracker.outer(record))

    def finish(self, end: RunEnd) -> None:
        self._each(lambda tracker: tracker.finish(end))
