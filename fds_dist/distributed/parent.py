"""A rank ends with its launcher: torchrun and deepspeed leave their ranks behind where they are killed.

It stands at the very beginning of the program, so it imports little.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from pathlib import Path

from fds_dist.distributed.processes import has_ended, identity, name_space

LAUNCHED_BY = "FDS_DIST_LAUNCHER"
"""The environment variable by which `launch/torchrun.py` tells its ranks which process it is."""

_STARTED_BY = ("TORCHELASTIC_RUN_ID", "CROSS_RANK")
"""Set by torchrun and by deepspeed."""
_watched: int | None = None
"""The parent whose death sends a signal to this process."""
_PR_SET_PDEATHSIG = 1
"""Of Linux's `prctl`: which signal a process gets when its parent dies."""


def end_with_launcher() -> None:
    """Asks Linux for SIGTERM when the launcher dies. Where it is dead already, the signal comes at once."""
    global _watched
    if sys.platform != "linux" or not any(name in os.environ for name in _STARTED_BY):
        return
    _watched = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if is_orphan(os.getppid(), os.environ.get(LAUNCHED_BY, "")):
        signal.raise_signal(signal.SIGTERM)


def launcher_loss() -> str:
    """In a rank whose launcher has ended, why it ends, in words; else ""."""
    has_ended_since = _watched is not None and os.getppid() != _watched  # the system has given it to another parent
    return f"the launcher on {socket.gethostname()} has ended" if has_ended_since else ""


def tell_ranks() -> None:
    """In a launcher: tells its ranks which process they come from."""
    os.environ[LAUNCHED_BY] = f"{name_space()} {identity(os.getpid())}"


def is_orphan(parent: int, launcher: str) -> bool:
    """Whether the launcher died before this process could ask for a signal.

    Args:
        launcher: what `tell_ranks` left. Where that is nothing, or of another host, the parent is looked at, which for
            an orphan is the system's first process, unless that one is the launcher itself.
    """
    space, _, its_identity = launcher.partition(" ")
    if space and space == name_space() and its_identity.startswith(f"{socket.gethostname()} "):
        return has_ended(int(its_identity.split()[1]), its_identity)
    if parent == 1:
        return not _is_python(parent)
    return Path(_program(parent).partition(" ")[0]).name == "systemd"  # of a user; it takes in a session's orphans


def _is_python(process: int) -> bool:
    """Whether a process runs Python; one that cannot be looked at may."""
    words = _program(process)
    return not words or "python" in words or "torchrun" in words


def _program(process: int) -> str:
    """The first two words of the command line of a process; "" where that cannot be read."""
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")[:2]
    except OSError:
        return ""
    return " ".join(word.decode(errors="replace") for word in words)
