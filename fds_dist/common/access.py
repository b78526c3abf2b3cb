"""Why a folder cannot be read or written, in words for whoever named it; and modules, where folders are gone."""

from __future__ import annotations

import errno
import os
import pwd
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from fds_dist.common.faults import Fault, UserError
from fds_dist.common.files import is_full, writing


def access_problem(folder: Path) -> str:
    """What keeps this process's user from reading what is at `folder`: a dangling link, a file, missing rights.

    "" where nothing does, and where nothing is there.
    """
    try:
        status = os.stat(folder)
    except OSError as error:
        return _unreachable(folder, error)
    if not stat.S_ISDIR(status.st_mode):
        return f"{folder} is a file, not a folder"
    effective = os.access in os.supports_effective_ids
    if os.access(folder, os.R_OK | os.X_OK, effective_ids=effective):
        return ""
    return f"{folder} is private: it belongs to {_name_of(status.st_uid)} ({stat.filemode(status.st_mode)})"


def readable_by_user() -> str:
    """What is right where `access_problem` finds something."""
    return f"a folder that {this_user()} may read"


def check_writable(folder: Path, key: str) -> None:
    """Makes the folder, if it is not there, and writes a file in it to see whether that is possible.

    Raises:
        UserError: it is not; see `writable`.
        WriteFailed: the disk is full.
    """
    with writable(folder, key):
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder) as probe:
            probe.write(b"\n")


@contextmanager
def writable(folder: Path, key: str) -> Iterator[None]:
    """Inside, an `OSError` is about the folder, which the user has named by `key`.

    Raises:
        UserError: in its place; one line names the folder, what is wrong with it and what is needed.
        WriteFailed: in its place, where the disk is full.
    """
    try:
        with writing(folder):
            yield
    except OSError as error:
        if is_full(error):
            raise
        problem = access_problem(folder) or f"cannot write in {folder}: {error.strerror}"
        raise UserError(Fault(key, problem, f"a folder in which {this_user()} may write")) from None


def this_user() -> str:
    """`user NAME`, or the number of a user without a name."""
    return f"user {_name_of(os.geteuid())}"


def forget_lost_folders() -> None:
    """Takes out of the search path for modules the folders of a file system that is gone, the current one perhaps.

    PyTorch imports a module when the interpreter ends, and Python tells of such a folder in a traceback.
    """
    for folder in tuple(sys.path):
        try:
            os.scandir(folder or os.curdir).close()  # of a lost folder, its status may be remembered
        except (FileNotFoundError, NotADirectoryError):  # which Python passes over
            pass
        except OSError:
            sys.path.remove(folder)


def _unreachable(folder: Path, error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return f"{folder} is a link that leads back to itself"
    if error.errno != errno.ENOENT:
        return f"{folder} cannot be reached: {error.strerror}"
    return f"{folder} is a link to {os.readlink(folder)}, which does not exist" if os.path.islink(folder) else ""


def _name_of(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)
