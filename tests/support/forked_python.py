"""A Python for launchers, which start interpreters themselves: each is a fork of one that has imported PyTorch.

As a program, `python forked_python.py ARGUMENTS...` does what `python ARGUMENTS...` does, in the environment, the
folder and the outputs that it has itself: it hands signals on to its fork, and ends as that ends.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType

from forking import Forked, parent

HANDED_ON = (signal.SIGTERM, signal.SIGINT)


def forked_python(folder: Path) -> Path:
    """The executable `python` in `folder`, which is made."""
    for number in range(2):  # a parent that is started here has no launcher's environment
        parent(number)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.absolute() / "python"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "{__file__}" "$@"\n')
    path.chmod(0o755)
    return path


def run(command: list[str]) -> int:
    """The exit status of the fork, or minus the signal that has ended it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDED_ON)
    rank = int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)
    fork = Forked(parent(rank % 2), command, Path.cwd(), os.environ, outputs=(1, 2), ppid=os.getppid())

    def hand_on(number: int, frame: FrameType | None) -> None:
        fork.send_signal(number)

    for number in HANDED_ON:
        signal.signal(number, hand_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDED_ON)
    return fork.wait()


if __name__ == "__main__":
    status = run(sys.argv[1:])
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)
