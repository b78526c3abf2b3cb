"""`python -m fds_dist`, and `fds-dist`. Needs no other module to answer a signal.

While Python imports the program, and after the command is done, nothing is left to put in order: a signal ends the
process at once. An exception would come out of a library half imported, or of the interpreter's end, as another one.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def main() -> int:
    """Runs the command line; returns its exit status."""
    for number in SIGNALS:
        signal.signal(number, _leave)
    from fds_dist.distributed.parent import end_with_launcher

    end_with_launcher()
    # PyTorch's store warns in pages of C++ frames of a rank that is lost, which one line of ours tells. PyTorch reads
    # the variable as it is imported.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from fds_dist.cli import main as run_command
    from fds_dist.common.access import forget_lost_folders

    status = 1
    try:
        status = run_command()
    finally:
        with suppress(OSError):  # nobody reads any more
            sys.stdout.flush()
        forget_lost_folders()
        for number in SIGNALS:  # the status of a command that has failed, or was interrupted, stays what it is
            # The system's own way: Python's would miss a signal that comes just before it waits for a thread.
            signal.signal(number, signal.SIG_IGN if status else signal.SIG_DFL)
    return status


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
