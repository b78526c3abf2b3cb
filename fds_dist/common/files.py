"""Files that are written whole or not at all, and checksums."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def write_text_atomic(path: Path, text: str) -> None:
    """Writes a file so that whoever reads it, also after a crash, sees the old text or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
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
