"""Processes as Linux's `/proc` shows them; on other systems nothing is known of them."""

from __future__ import annotations

import os
import socket
from pathlib import Path

_PARENT, _START = 1, 19
"""Fields of `/proc/PID/stat` after the program's name; the first is the state."""


def status(process: int) -> list[str]:
    """The fields of `/proc/PID/stat` after the program's name, which may hold blanks; none where there is none."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def identity(process: int) -> str:
    """What tells a process from all others there ever were: its host, its number and its start."""
    fields = status(process)
    return f"{socket.gethostname()} {process} {fields[_START] if fields else '?'}"


def parent(process: int) -> int:
    """The number of its parent; 0 where that is not known."""
    fields = status(process)
    return int(fields[_PARENT]) if fields else 0


def variables(process: int) -> list[bytes]:
    """The environment with which it began, as `NAME=VALUE`; none where that may not be read."""
    try:
        return Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def name_space() -> str:
    """What processes have in common that see each other by the same numbers; "" where that is not known."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def has_ended(process: int, its_identity: str) -> bool:
    """Whether the process with this identity, of the name space of this one, is gone, or is only waited for."""
    fields = status(process)
    return not fields or fields[0] in "ZX" or identity(process) != its_identity


def is_stopped(process: int) -> bool:
    """Whether a signal (SIGSTOP, Ctrl-Z) or a debugger has stopped it."""
    return bool(fields := status(process)) and fields[0] in "Tt"
