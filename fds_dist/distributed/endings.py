"""How ranks end that a signal has asked to end: interrupted, or because a rank or a launcher is lost.

A launcher that has lost a rank, or the other hosts, sends SIGTERM to the ranks that it has left, as it does where a
person interrupts it. The ranks save what they have in either case, and then see which of the two it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from fds_dist.common.interruptions import Grace, forget_signals
from fds_dist.distributed.errors import RankLost
from fds_dist.distributed.heartbeat import current
from fds_dist.distributed.lost import lost_launchers
from fds_dist.distributed.mesh import Ranks
from fds_dist.distributed.parent import launcher_loss


@contextmanager
def graceful(seconds: float, last_words: Callable[[], None]) -> Iterator[None]:
    """A `Grace` in which ranks talk to each other.

    Raises:
        KeyboardInterrupt: the run is interrupted; its cause is a `RankLost` where the ranks could not save together.
        RankLost: another rank is lost, for which a signal that has come is no more than a sign.
    """
    with Grace(seconds, last_words) as grace:
        try:
            yield
        except RankLost as error:
            if grace.asked and error.verdict.interrupted:
                raise KeyboardInterrupt from error
            if grace.asked:
                forget_signals()
            raise


def end_together(ranks: Ranks, where: str) -> NoReturn:
    """Ends a run of which all that counts is saved, where a signal has asked any of `ranks` to end. All call it alike.

    Args:
        where: what is saved.

    Raises:
        RankLost: the signal came to the ranks of a launcher because that has ended.
        KeyboardInterrupt: else.
    """
    heartbeat = current()
    rank = ranks.rank if heartbeat is None else heartbeat.environment.rank  # among all replicas
    losses = {rank: loss for rank, loss in ranks.gather_objects((rank, launcher_loss())) if loss}
    if losses:
        raise RankLost(lost_launchers(losses, where, heartbeat))
    raise KeyboardInterrupt
