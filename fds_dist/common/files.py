"""Files that are written whole or not at all, checksums, and JSON that any file may hold."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

OWNER_ONLY = 0o600
"""The mode of a file that may hold secrets."""


def write_text_atomic(path: Path, text: str, mode: int | None = None) -> None:
    """`write_atomic` for text, in UTF-8."""
    write_atomic(path, text.encode(), mode)


def write_atomic(path: Path, content: bytes, mode: int | None = None) -> None:
    """Writes a file so that readers see the old content or the new one, never a part, also after a crash.

    Args:
        mode: who may read it, from before its first byte is there; None: as the process's umask has it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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
