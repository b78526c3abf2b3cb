"""Signals: how a command ends on SIGINT or SIGTERM, what they must not cut in two, and time to end at a good place."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

INTERRUPTED = 130
"""Exit status of a command that a signal has ended."""

SIGNALS = (signal.SIGINT, signal.SIGTERM)

ECHO_SECONDS = 2.0
"""A signal that comes so soon after another is an echo: a launcher passes on what its ranks have got already."""

LAST_SECONDS = 5.0
"""From KeyboardInterrupt, which a main thread that waits within a library does not take, to the end of the process."""


@dataclass
class _Heard:
    """The signals since the command, or the search, began; echoes do not count."""

    count: int = 0
    last: float = 0.0

    def hear(self, echo_seconds: float = ECHO_SECONDS) -> int:
        """The number of the signal that has just come, from 1 on; 0 for an echo."""
        now = time.monotonic()
        if self.count and now - self.last < echo_seconds:
            return 0
        self.count, self.last = self.count + 1, now
        return self.count


_heard = _Heard()


def was_signalled() -> bool:
    """Whether a signal has come since `end_on_signals`."""
    return _heard.count > 0


def forget_signals() -> None:
    """Those that have come are no interruption: a launcher sends them to ranks that are left of those it has lost."""
    _heard.count = 0


def asked_to_end() -> bool:
    """Whether this process is within a `Grace`, and a signal has come there."""
    return _within is not None and _within.asked


def end_on_signals() -> None:
    """From here on the first signal raises KeyboardInterrupt, and another ends the process at once."""
    _heard.count = 0
    for number in SIGNALS:
        signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    which = _heard.hear()
    if which > 1 or (which == 1 and _imports(frame)):
        os._exit(INTERRUPTED)
    if which == 1:
        raise KeyboardInterrupt


def _imports(frame: FrameType | None) -> bool:
    """Whether a module is being imported, which an exception would leave half made: the next one to use it fails."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _handlers() -> dict[signal.Signals, Any]:
    """The handlers in Python of SIGINT and SIGTERM: not those that the caller ignores or leaves to the system. None
    outside the main thread, which alone may set handlers and is interrupted."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    return {number: handler for number, handler in handlers.items() if callable(handler)}


@contextmanager
def defer_signals() -> Iterator[None]:
    """Inside, SIGINT and SIGTERM are held back; afterwards the first that arrived takes its usual effect.

    A launcher sends one to all ranks as soon as any rank has ended, and rank 0 still has to say how the run ended.
    """
    arrived: list[int] = []
    handlers = _handlers()
    for number in handlers:
        signal.signal(number, lambda number, frame: arrived.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if arrived:
            signal.raise_signal(arrived[0])


class Grace:
    """Inside, the first signal only asks (`asked_to_end`): the program has `seconds` to end at a place of its choice.

    After that, or on a second signal, KeyboardInterrupt is raised. Where the main thread does not take it, because it
    waits in vain for another rank, `last_words` are said in another thread, and the process ends. With 0 seconds, and
    outside the main thread, nothing changes.
    """

    def __init__(self, seconds: float, last_words: Callable[[], None]) -> None:
        self._seconds, self._last_words = seconds, last_words
        self._usual: dict[signal.Signals, Any] = {}
        self._time_is_up = False
        self.asked = False
        """Whether a signal has come, also after the end of the context."""

    def __enter__(self) -> Grace:
        global _within
        self._usual = _handlers() if self._seconds else {}
        if not self._usual:
            return self
        _heard.count, _within = 0, self
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        # Python writes the number of a signal there when it arrives, whatever the main thread is doing.
        self._usual_writer = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._watcher = threading.Thread(target=self._watch, name="grace", daemon=True)
        self._watcher.start()
        for number in self._usual:
            signal.signal(number, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        if not self._usual:
            return
        self.forget(self._usual_writer)
        os.write(self._writer, bytes(1))
        self._watcher.join()
        os.close(self._reader)
        os.close(self._writer)

    def forget(self, writer: int) -> None:
        """Gives signals their usual effect again, and the file descriptor that Python writes them to."""
        global _within
        _within = None
        for number, handler in self._usual.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(writer)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if _within is not self:  # it ends already
            return
        which = _heard.hear(0.0 if self._time_is_up else ECHO_SECONDS)
        self.asked, self._time_is_up = True, False
        if which == 2:
            raise KeyboardInterrupt
        if which > 2:
            os._exit(INTERRUPTED)

    def _watch(self) -> None:
        """The thread that sees to it that the process ends in time."""
        if not self._next():
            return
        asked = time.monotonic()
        while (number := self._next(asked + self._seconds)) and time.monotonic() - asked < ECHO_SECONDS:
            pass
        if number is None:
            self._time_is_up = True
            signal.pthread_kill(threading.main_thread().ident or 0, next(iter(self._usual)))
        end = time.monotonic() + LAST_SECONDS
        while number != 0 and (number := self._next(end)):
            pass
        if number is None:
            self._last_words()
            os._exit(INTERRUPTED)

    def _next(self, until: float | None = None) -> int | None:
        """The number of the next signal; 0 where the context has ended, None where time has come `until` then."""
        while True:
            left = None if until is None else max(0.0, until - time.monotonic())
            if not select.select([self._reader], [], [], left)[0]:
                return None
            (number,) = os.read(self._reader, 1)
            if number == 0 or number in self._usual:
                return number


_within: Grace | None = None
"""The one that this process is in."""


def _forget_in_child() -> None:
    """A forked process ends on signals as ever, and does not write to its parent's pipe."""
    if _within is not None:
        _within.forget(-1)


os.register_at_fork(after_in_child=_forget_in_child)
