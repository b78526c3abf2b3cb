"""What each command does and prints; the room has the command's name."""

from __future__ import annotations

DONE, FAILED, WRONG_INPUT = 0, 1, 2
"""Exit statuses, beside `fds_dist.common.interruptions.INTERRUPTED`."""


class CommandFailed(Exception):
    """The input was right, and the command could not do its work; the message is enough, without a traceback."""
