"""Sends events to many listeners. A listener that fails is dropped and does not stop the work."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar


class Listener:
    """Receives the events of some work, such as a console or a tracking service.

    A subclass overrides the methods of the events that it needs; the others do nothing.
    """

    required: bool = False
    """Whether the work must stop when this listener fails: only true for the file that is the record."""

    broadcast: Broadcast[Any] | None = None
    """The broadcast that this listener belongs to."""

    def note(self, message: str) -> None:
        """Receives a message that the user should see now."""

    def tell(self, message: str) -> None:
        """Sends a message to the user through all listeners of the same broadcast."""
        if self.broadcast is not None:
            self.broadcast.note(message)


Kind = TypeVar("Kind", bound=Listener)


class Broadcast(Generic[Kind]):
    """Calls every listener, in order.

    A listener that raises is dropped, and the others receive a note with the reason. If the listener is `required`, its
    exception propagates instead.
    """

    def __init__(self, listeners: Iterable[Kind]) -> None:
        self._listeners = list(listeners)
        for listener in self._listeners:
            listener.broadcast = self

    def note(self, message: str) -> None:
        """Sends a message that the user should see now."""
        self._each(lambda listener: listener.note(message))

    def _each(self, call: Callable[[Kind], None]) -> None:
        for listener in list(self._listeners):
            if listener not in self._listeners:  # dropped meanwhile: it failed on the note about another one's failure
                continue
            try:
                call(listener)
            except Exception as error:
                if listener.required:
                    raise
                self._listeners.remove(listener)
                reason = " ".join(str(error).split()) or type(error).__name__
                self.note(f"{type(listener).__name__} failed and stays off for the rest of the run: {reason}")
