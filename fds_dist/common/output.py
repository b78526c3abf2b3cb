"""The standard output of a command, whose failure is one line: it may be a file on a disk that is full."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from fds_dist.common.files import WriteFailed


class _Output(io.TextIOWrapper):
    """A stream that says what it is where it cannot be written. A closed pipe, as by `head`, is an error as ever."""

    def write(self, text: str, /) -> int:
        with _told():
            return super().write(text)

    def flush(self) -> None:
        with _told():
            super().flush()


def name_output() -> None:
    """From now on an error of the standard output names it.

    What the encoding of a locale that knows ASCII alone lacks, it writes as `\\xfc`, and so does the standard error.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    old = sys.stdout
    if type(old) is io.TextIOWrapper:  # none that a test or a notebook has put there
        sys.stdout = _Output(old.buffer, old.encoding, old.errors, None, old.line_buffering, old.write_through)


def close_output() -> None:
    """Ends the standard output; otherwise the flush at exit fails again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        close_output()
        raise WriteFailed(error.errno, error.strerror, "the standard output") from None
