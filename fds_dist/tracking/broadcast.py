"""One event, told to many listeners: a listener that fails is dropped and does not stop the work."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar


class Listener:
    """Something that is told how work goes, such as a console or a tracking service.

    A subclass overrides what it listens to; everything else does nothing.
    """

    required: bool = False
    """Whether the work must stop when this listener fails. False for all but the record itself."""

    broadcast: Broadcast[Any] | None = None
    """What this listener is a part of."""

    def note(self, message: str) -> None:
        """Hears of an event that a person should see now."""

    def tell(self, message: str) -> None:
        """Tells a person something, through all listeners of the same broadcast."""
        if self.broadcast is not None:
            self.broadcast.note(message)


Kind = TypeVar("Kind", bound=Listener)


class Broadcast(Generic[Kind]):
    """Tells every listener, in order.

    A listener that raises is dropped, and a note tells the others why. If the listener is `required`, its exception
    propagates instead.
    """

    def __init__(self, listeners: Iterable[Kind]) -> None:
        self._listeners = list(listeners)
        for listener in self._listeners:
            listener.broadcast = self

    def note(self, message: str) -> None:
        """Tells of an event that a person should see now."""
        self._each(lambda listener: listener.note(message))

    def _each(self, tell: Callable[[Kind], None]) -> None:
        for listener in list(self._listeners):
            if listener not in self._listeners:  # dropped meanwhile, by the note on the failure of another one
                continue
            try:
                tell(listener)
            except Exception as error:
                if listener.required:
                    raise
                self._listeners.remove(listener)
                reason = " ".join(str(error).split()) or type(error).__name__
                self.note(f"{type(listener).__name__} failed and is off for the rest of the run: {reason}")
