"""Who is told how a run goes: a protocol to fulfil, and all of them together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from fds_dist.tracking.records import InnerBlock, OuterRecord, RunEnd, RunStart


class Tracker(Protocol):
    """Something that is told how a run goes.

    A tracker may also have an attribute ``tell``: `Trackers` replaces it by its own ``note``, so that the
    tracker can tell a person something through the others.
    """

    required: bool
    """Whether the run must stop when this tracker fails. False for all but the record itself."""

    def start(self, run: RunStart) -> None: ...

    def inner(self, block: InnerBlock) -> None: ...

    def outer(self, record: OuterRecord) -> None: ...

    def note(self, message: str) -> None:
        """An event that a person should see now."""
        ...

    def finish(self, end: RunEnd) -> None: ...


class Trackers:
    """Forwards everything to each tracker, in order; ranks other than 0 use ``Trackers([])``.

    Tracking must not stop a run: a tracker that raises is reported by one note on the others and dropped,
    unless it is `required`; then its exception propagates.
    """

    def __init__(self, trackers: Iterable[Tracker]) -> None:
        self._trackers = list(trackers)
        for tracker in self._trackers:
            if hasattr(tracker, "tell"):
                setattr(tracker, "tell", self.note)  # noqa: B010 (optional, hence not in the protocol)

    def start(self, run: RunStart) -> None:
        self._each("start", run)

    def inner(self, block: InnerBlock) -> None:
        self._each("inner", block)

    def outer(self, record: OuterRecord) -> None:
        self._each("outer", record)

    def note(self, message: str) -> None:
        """An event that a person should see now."""
        self._each("note", message)

    def finish(self, end: RunEnd) -> None:
        self._each("finish", end)

    def _each(self, method: str, argument: object) -> None:
        for tracker in list(self._trackers):
            if tracker not in self._trackers:  # dropped meanwhile, by a note that another one's failure caused
                continue
            try:
                getattr(tracker, method)(argument)
            except Exception as error:
                if tracker.required:
                    raise
                self._trackers.remove(tracker)
                self.note(f"{type(tracker).__name__} failed and is off for the rest of the run: {_reason(error)}")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
