"""What a rank says when another one is gone, and what it tells the others when it ends itself."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

from fds_dist.common.faults import UserError, user_line
from fds_dist.common.words import plural
from fds_dist.distributed import last_words

TIMEOUT = timedelta(minutes=10)
"""After this long without an answer from another rank a run ends with an error instead of waiting for ever."""


class RankLost(RuntimeError):
    """Another rank ended or did not answer in time."""

    def __init__(self, reason: str, heard: Mapping[int, str] | None = None) -> None:
        """`reason`: of PyTorch's; `heard`: rank → why it ended, where ranks have said so."""
        if heard:
            super().__init__(told_endings(heard))
            return
        minutes = TIMEOUT.total_seconds() / 60
        what = f"lost another rank (it exited, or did not answer for {minutes:g} minutes); see its output"
        super().__init__(f"{what} ({reason})")


def told_endings(heard: Mapping[int, str]) -> str:
    """`rank 1 ended: ValueError: planted at task.py:7`; ranks with the same reason are named together."""
    ranks: dict[str, list[int]] = {}
    for rank, text in sorted(heard.items()):
        ranks.setdefault(text, []).append(rank)
    return "; ".join(
        f"{plural(len(each), 'rank')} {', '.join(map(str, each))} ended: {text}" for text, each in ranks.items()
    )


def ending(error: BaseException) -> str:
    """Why this rank ends, in one line for the others; "" where it ends because it has lost another one."""
    if isinstance(error, RankLost):
        return ""
    if isinstance(error, UserError):
        return "; ".join(map(str, error.faults))
    if isinstance(error, KeyboardInterrupt):
        return "it was interrupted"
    message = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}{': ' if message else ''}{message}{user_line(error)}"


@contextmanager
def rank_errors() -> Iterator[None]:
    """Inside, ranks talk to each other; PyTorch raises alike for a closed connection and for a timeout.

    Raises:
        RankLost: one of them is gone; with its last words, where it has said some.
    """
    try:
        yield
    except RankLost:
        raise
    except RuntimeError as error:
        reason = next(iter(str(error).splitlines()), "")
        reason = re.sub(r"^\[[^]]*\] ", "", reason)  # without the line in PyTorch's source
        raise RankLost(reason, last_words.heard()) from error
