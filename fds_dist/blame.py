"""Mistakes in a person's own code: the line of their file in one line, instead of a traceback through this package."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fds_dist.faults import Fault, UserError

PACKAGE = Path(__file__).resolve().parent
LIBRARIES = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib"))


@contextmanager
def blamed(key: str, what: str, circumstances: str = "") -> Iterator[None]:
    """Exceptions inside become a `UserError` of `key` that tells what was raised, and in which line of whose file."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        message = next(iter(str(error).strip().splitlines()), "")
        raised = f"{type(error).__name__}: {message}" if message else type(error).__name__
        raise UserError(Fault(key, f"{what} raised {raised}{user_line(error)}{circumstances}")) from error


def user_line(error: BaseException) -> str:
    """` at file:line` of the innermost line that is neither of this package nor of a library; "" if there is none."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_file() and not any(path.is_relative_to(folder) for folder in (PACKAGE, *LIBRARIES)):
            shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
            return f" at {shown}:{frame.lineno}"
    return ""
