"""What a rank says when another one is gone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

TIMEOUT = timedelta(minutes=10)
"""After this long without an answer from another rank a run ends with an error instead of waiting for ever."""


class RankLost(RuntimeError):
    """Another rank ended or did not answer in time."""

    def __init__(self, reason: str) -> None:
        minutes = TIMEOUT.total_seconds() / 60
        what = f"lost another rank (it exited, or did not answer for {minutes:g} minutes); see its output"
        super().__init__(f"{what} ({reason})")


@contextmanager
def rank_errors() -> Iterator[None]:
    """Inside, ranks talk to each other; PyTorch raises alike for a closed connection and for a timeout.

    Raises:
        RankLost: one of them is gone.
    """
    try:
        yield
    except RankLost:
        raise
    except RuntimeError as error:
        reason = next(iter(str(error).splitlines()), "")
        raise RankLost(re.sub(r"^\[[^]]*\] ", "", reason)) from error  # without the line in PyTorch's source
