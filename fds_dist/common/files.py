"""Files that are written whole or not at all, what a failed write says, checksums, and JSON that any file may hold."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

VISIBLE_SECONDS = 10.0
"""How long a file may take to be seen on another host: a network file system answers from its cache at first."""


class WriteFailed(OSError):
    """A file could not be written: the disk is full, a quota is used up, the folder is gone or not writable.

    Args:
        number, reason, path: as of `OSError`: the error's number, its text, and the file.
    """

    def __str__(self) -> str:
        """One line: `cannot write runs/digits/history.jsonl: No space left on device`."""
        return f"cannot write {self.filename}: {self.strerror}"


def is_full(error: OSError) -> bool:
    """Whether the disk or a quota is full or the disk is broken: nothing that another folder's name would change."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO)


class FileLost(WriteFailed):
    """A file cannot be reached any more: its file system has gone, or answers with errors."""

    def __str__(self) -> str:
        """One line: `cannot reach runs/digits/checkpoints: Transport endpoint is not connected`."""
        return f"cannot reach {self.filename}: {self.strerror}"


_GONE = (errno.ENOTCONN, errno.ESTALE, errno.EIO, errno.ENODEV, errno.EHOSTDOWN, errno.ETIMEDOUT)


def lost_file(error: BaseException) -> FileLost | None:
    """`error` as one about a file that cannot be reached; None where it is something else."""
    if isinstance(error, OSError) and error.filename is not None and error.errno in _GONE:
        return FileLost(error.errno, error.strerror, str(error.filename))
    return None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Inside, an `OSError` is one about writing `path`.

    Raises:
        WriteFailed: in its place.
    """
    try:
        yield
    except WriteFailed:
        raise
    except OSError as error:
        raise WriteFailed(error.errno, error.strerror or str(error), str(path)) from error


OWNER_ONLY = 0o600
"""The mode of a file that may hold secrets."""


def write_text_atomic(path: Path, text: str, mode: int | None = None) -> None:
    """`write_atomic` for text, in UTF-8."""
    write_atomic(path, text.encode(), mode)


def write_atomic(path: Path, content: bytes, mode: int | None = None) -> None:
    """Writes a file so that readers see the old content or the new one, never a part, also after a crash.

    Args:
        mode: who may read it, from before its first byte is there; None: as the process's umask has it.

    Raises:
        WriteFailed: the old content is still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path):
            with temporary.open("wb") as file:
                if mode is not None:
                    os.fchmod(file.fileno(), mode)
                file.write(content)
                flush_to_disk(file)
            os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_output(path: Path, text: str) -> None:
    """Writes a file that the user has named: through a link, and into what is no regular file, such as a pipe.

    Raises:
        WriteFailed: a regular file has its old content still.
    """
    target = Path(os.path.realpath(path)) if os.path.islink(path) else path
    if os.path.isfile(target) or not os.path.exists(target):
        write_text_atomic(target, text)
        return
    with writing(path), target.open("w", encoding="utf-8") as file:
        file.write(text)


def append(path: Path, content: bytes) -> None:
    """Adds `content` to a file, on disk before it returns. A write that fails leaves the file as it was.

    Raises:
        WriteFailed: see above.
    """
    with writing(path), path.open("ab", buffering=0) as file:  # a buffer would be written again when the file closes
        size = file.tell()
        try:
            while content:
                content = content[file.write(content) :]
            flush_to_disk(cast(BinaryIO, file))
        except BaseException:
            with suppress(OSError):
                os.truncate(path, size)
            raise


def flush_to_disk(file: BinaryIO) -> None:
    """Returns once what was written to `file` is on disk."""
    file.flush()
    os.fsync(file.fileno())


def make_folder(path: Path, parents: bool = False) -> None:
    """Makes the folder `path`, which may be there already; with `parents` those above it too.

    Raises:
        WriteFailed: it cannot be made.
    """
    with writing(path):
        path.mkdir(parents=parents, exist_ok=True)


def is_visible(path: Path, until: float) -> bool:
    """Whether there is a file `path`, which another host may have written a moment ago.

    Args:
        until: the time, by `time.monotonic`, after which it counts as missing.
    """
    while not os.path.isfile(path):
        if time.monotonic() > until:
            return False
        # What a host changes itself in a folder makes it drop what its cache says of that folder.
        with suppress(OSError):
            probe = path.with_name(f".{os.uname().nodename}.{os.getpid()}.probe")
            probe.touch()
            probe.unlink()
        time.sleep(0.05)
    return True


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        checksum = hashlib.sha256()
        while chunk := file.read(1 << 20):  # `hashlib.file_digest` came with Python 3.11
            checksum.update(chunk)
    return checksum.hexdigest()


def parse_json(text: str | bytes) -> Any:
    """The JSON values of a text.

    Raises:
        ValueError: it is not JSON in UTF-8, or is nested too deeply to be read.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path) -> Any:
    """The JSON values in a file.

    Raises:
        OSError: it cannot be read.
        ValueError: see `parse_json`.
    """
    return parse_json(path.read_bytes())
