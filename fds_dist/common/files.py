"""Files that a crash cannot tear: written whole or not at all, or grown line by line; and their checksums."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fds_dist.common.faults import Fault, UserError


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
        found = hashlib.sha256()
        while chunk := file.read(1 << 20):  # `hashlib.file_digest` came with Python 3.11
            found.update(chunk)
    return found.hexdigest()


@dataclass(frozen=True)
class Record:
    """A file of JSON lines that only grows. Written by the first rank alone."""

    path: Path

    def read(self) -> list[dict[str, Any]]:
        """All whole lines; what a crash left of a last one is cut off.

        Raises:
            UserError: a line is no JSON object.
        """
        if not self.path.exists():
            return []
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self.path, whole)
        entries = []
        for number, line in enumerate(content[:whole].splitlines(), start=1):
            try:
                entry = json.loads(line)
            except ValueError:
                entry = None
            if not isinstance(entry, dict):
                problem = f"{self.path}, line {number} is not a record"
                raise UserError(Fault("", problem, "a file written by `fds-dist compare`; delete it to start over"))
            entries.append(entry)
        return entries

    def append(self, entries: Iterable[dict[str, Any]]) -> None:
        """Adds lines, all or (in a crash) a leading part of them, on disk before it returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write("".join(json.dumps(entry) + "\n" for entry in entries).encode())
            file.flush()
            os.fsync(file.fileno())
