"""Signals that must not end a process half-way through a task."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def defer_signals() -> Iterator[None]:
    """Inside, SIGINT and SIGTERM are held back; afterwards the first that arrived takes its usual effect.

    A launcher sends one to all ranks as soon as any rank has ended, and rank 0 still has to say how the run ended.
    """
    arrived: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if (
        threading.current_thread() is not threading.main_thread()
    ):  # only the main thread may set handlers, and is interrupted
        handlers = {}
    handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in handlers:
        signal.signal(number, lambda number, frame: arrived.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if arrived:
            signal.raise_signal(arrived[0])
