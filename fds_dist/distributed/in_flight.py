"""What is under way between ranks while they compute."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

Value = TypeVar("Value")
Changed = TypeVar("Changed")
Item = TypeVar("Item")


class Sent(Generic[Value]):
    """A result that takes part of other ranks. After `wait`, which is called once, or `drop` nothing is held here."""

    def __init__(self, receive: Callable[[], Value]) -> None:
        self._receive: Callable[[], Value] | None = receive

    def wait(self) -> Value:
        """The result, once it is there.

        Raises:
            RankLost: another rank is gone.
        """
        receive, self._receive = self._receive, None
        assert receive is not None
        return receive()

    def drop(self) -> None:
        """Waits no more."""
        self._receive = None

    def then(self, change: Callable[[Value], Changed]) -> Sent[Changed]:
        """What `change` makes of the result, once it is there."""
        return Sent(lambda: change(self.wait()))


def arrived(value: Value) -> Sent[Value]:
    """A result that is there."""
    return Sent(lambda: value)


def ahead(items: Iterable[Item], count: int) -> Iterator[Item]:
    """The `items`, each of which is given once `count` further ones have been made. None is held beyond that."""
    waiting = deque[Item]()
    for _ in map(waiting.append, items):
        if len(waiting) > count:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()
