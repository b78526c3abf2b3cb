"""Mistakes in the user's input, as values, so that all of them are reported at once; and the line of the user's own
code that an exception came from.
"""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from fds_dist.common.out_of_memory import is_out_of_memory
from fds_dist.common.secrets import hide_in_fault, hide_in_text


@dataclass(frozen=True)
class Fault:
    """One mistake in the user's input."""

    key: str
    """Dotted key as the user would type it, e.g. `hyperparameters.lr.buckets`; "" where none fits."""

    problem: str
    """What is wrong, with the value: "0 is out of range", "unknown key"."""

    expected: str = ""
    """What would be right: "a whole number of at least 1"."""

    suggestion: str = ""
    """The nearest valid name, e.g. `inner.epochs`."""

    def __str__(self) -> str:
        """One line, whatever the parts hold, without the secrets in them."""
        problem = hide_in_fault(self.key, self.problem)
        text = f"{hide_in_text(self.key)}: {problem}" if self.key else problem
        if self.expected:
            text += f"; expected {self.expected}"
        if self.suggestion:
            text += f"; did you mean {self.suggestion}?"
        return " ".join(text.split())


class UserError(Exception):
    """The user's input is wrong: the command line prints one line per fault and exits with status 2."""

    def __init__(self, faults: Iterable[Fault] | Fault) -> None:
        self.faults: tuple[Fault, ...] = (faults,) if isinstance(faults, Fault) else tuple(faults)
        super().__init__(self.faults)

    def __str__(self) -> str:
        """One line per fault."""
        return "\n".join(map(str, self.faults))


PACKAGE = Path(__file__).resolve().parents[1]
PYTHONS = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "scripts"))
"""Folders of Python's own files, and of the programs that packages have installed: this one's, torchrun."""
INSTALLED = {"site-packages", "dist-packages"}
"""Folders of installed packages: those of this environment, and of any other that it reaches (a module's or conda's
Python below a virtual environment, a `.pth` file)."""


@contextmanager
def user_code(key: str, what: str, circumstances: str = "") -> Iterator[None]:
    """Exceptions inside become a `UserError` of `key` that tells what was raised, and in which line of whose file."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_out_of_memory(error):  # no mistake of the user's code
            raise
        message = next(iter(str(error).strip().splitlines()), "")
        raised = f"{type(error).__name__}: {message}" if message else type(error).__name__
        raise UserError(Fault(key, f"{what} raised {raised}{user_line(error)}{circumstances}")) from error


def user_line(error: BaseException) -> str:
    """` at file:line` of the innermost line of the user's own code; "" where there is none.

    The user's own is each file that is neither in this package, nor in the standard library, nor in a folder of
    installed packages.
    """
    if isinstance(error, SyntaxError) and error.filename and _is_users(Path(error.filename)):
        return f" at {_from_here(Path(error.filename))}:{error.lineno}"
    return _innermost(traceback.extract_tb(error.__traceback__))


def user_line_here() -> str:
    """` at file:line` of the innermost line of the user's own code that is running; "" where there is none."""
    return _innermost(traceback.extract_stack())


def user_line_of(frame: FrameType) -> str:
    """` at file:line` of the innermost line of the user's own code that `frame` runs; "" where there is none.

    No file is looked at: that of a file system which does not answer may be what the line waits for.
    """
    for outer, line in traceback.walk_stack(frame):
        path = Path(outer.f_code.co_filename)
        if not path.name.startswith("<") and not _is_a_librarys(path):
            return f" at {_from_here(path)}:{line}"
    return ""


def passes_others(error: BaseException, *libraries: Path) -> bool:
    """Whether `error` passed through code that is neither this package's, nor Python's, nor that of these `libraries`
    (folders): a user's or another library's."""
    own = (PACKAGE, *libraries)
    paths = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    others = [path for path in paths if path.is_file() and not any(map(path.is_relative_to, own))]
    return any(not INSTALLED.isdisjoint(path.parts) or not any(map(path.is_relative_to, PYTHONS)) for path in others)


def _innermost(frames: traceback.StackSummary) -> str:
    for frame in reversed(frames):
        if _is_users(path := Path(frame.filename)):
            return f" at {_from_here(path)}:{frame.lineno}"
    return ""


def _is_users(path: Path) -> bool:
    return not _is_a_librarys(path) and path.is_file()


def _is_a_librarys(path: Path) -> bool:
    """Whether a file is this package's, Python's or an installed package's."""
    return any(path.is_relative_to(folder) for folder in (PACKAGE, *PYTHONS)) or not INSTALLED.isdisjoint(path.parts)


def _from_here(path: Path) -> Path:
    """The path as seen from the current folder, where it lies below that."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
