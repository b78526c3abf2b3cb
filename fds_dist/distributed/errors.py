"""What a rank says when another one is gone, and what it tells the others when it ends itself."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributed import DistError

from fds_dist.common.faults import UserError, user_line
from fds_dist.common.out_of_memory import OutOfMemory, is_out_of_memory
from fds_dist.distributed.heartbeat import Verdict, current, here
from fds_dist.distributed.last_words import INTERRUPTED
from fds_dist.distributed.lost import why_lost
from fds_dist.distributed.parent import launcher_loss


class RankLost(RuntimeError):
    """Another rank ended or did not answer in time; which one, as far as that is known.

    `speaks` says whether this rank is the first of its node that is left, the one that tells it.
    """

    def __init__(self, verdict: Verdict | str) -> None:
        self.verdict = verdict if isinstance(verdict, Verdict) else Verdict(verdict, [])
        super().__init__(self.verdict.text)
        heartbeat = current()
        place = None if heartbeat is None else heartbeat.environment
        # The ranks of a node follow one another.
        before = range(0) if place is None else range(place.rank - place.local_rank, place.rank)
        self.speaks: bool | None = None if place is None else all(rank in self.verdict.lost for rank in before)


def ending(error: BaseException) -> str:
    """Why this rank ends, in one line for the others; "" where it ends because it has lost another one."""
    if isinstance(error, RankLost):
        return ""
    if isinstance(error, UserError):
        return "; ".join(map(str, error.faults))
    if isinstance(error, OutOfMemory):
        return error.text
    if isinstance(error, KeyboardInterrupt):
        return launcher_loss() or INTERRUPTED
    message = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}{': ' if message else ''}{message}{user_line(error)}"


@contextmanager
def rank_errors() -> Iterator[None]:
    """Inside, ranks talk to each other; PyTorch raises alike for a closed connection and for a timeout.

    Raises:
        RankLost: one of them is gone; with its last words, where it has said some.
    """
    waits = here.waiting is not None
    here.waiting = time.monotonic()
    try:
        yield
    except RankLost:
        raise
    except RuntimeError as error:
        if is_out_of_memory(error):  # this rank's own
            raise
        raise _lost(error) from error
    finally:
        here.waiting = time.monotonic() if waits else None


@contextmanager
def rank_errors_of_libraries() -> Iterator[None]:
    """Inside, a library lets ranks talk to each other (DDP in a backward pass, DeepSpeed), and a user's code runs.

    Raises:
        RankLost: as `rank_errors` does, for errors of PyTorch's communication alone.
    """
    try:
        yield
    except RankLost:
        raise
    except RuntimeError as error:
        if isinstance(error, DistError) or "gloo/" in str(error):
            raise _lost(error) from error
        raise


def _lost(error: RuntimeError) -> RankLost:
    reason = next(iter(str(error).splitlines()), "")
    # Without the line in PyTorch's source, and without advice.
    reason = re.sub(r"^\[[^]]*\] |\. This is typically caused by .*", "", reason)
    return RankLost(why_lost(reason, current()))


def reached(place: str, step: int) -> None:
    """Notes where this rank is: `inner step {} of outer step 0`, with `{}` for the step that it has done.

    Raises:
        RankLost: meanwhile another rank has lost one.
    """
    here.place, here.step = place, step
    if here.verdict is not None:
        here.has_lost = True
        raise RankLost(here.verdict)
