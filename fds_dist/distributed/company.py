"""The company of the other ranks: signs of life while a run goes on, and an end to waits that would have none."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from fds_dist.distributed.environment import LaunchEnvironment
from fds_dist.distributed.errors import RankLost, rank_errors
from fds_dist.distributed.heartbeat import ENDED, LOST, Heartbeat, current, here, make_current
from fds_dist.distributed.lost import why_lost
from fds_dist.distributed.store import hosts_store, line_to_host, shared_store, store_of_rank_0

OVERTIME = 15.0
"""Seconds beyond `distributed.timeout` after which no library that waits will end by itself."""

LINGER = 10.0
"""Seconds for which a rank that has the store leaves it to the others, when all of them have lost one."""


@contextmanager
def company(environment: LaunchEnvironment) -> Iterator[None]:
    """Inside, this rank gives signs of life, and ends when it has waited too long. All ranks call this alike.

    Within another `company` it does nothing.
    """
    if not environment.distributed or current() is not None:
        yield
        return
    with rank_errors():
        store = shared_store(environment)
    heartbeat = Heartbeat(store, line_to_host(store), environment, store_of_rank_0(environment))
    over = threading.Event()
    make_current(heartbeat)
    heartbeat.start()
    watchdog = threading.Thread(target=_watch, args=(heartbeat, over), name="fds-dist watchdog", daemon=True)
    watchdog.start()
    try:
        yield
    finally:
        over.set()
        watchdog.join()
        if here.has_lost and hosts_store(environment):
            _linger(heartbeat)
        heartbeat.stop()
        make_current(None)


def _watch(heartbeat: Heartbeat, over: threading.Event) -> None:
    """Ends this process where it waits within a library that does not come back.

    So do PyTorch's store, whose client waits for ever for a server that is stopped, and NCCL's kernels.
    """
    while not over.wait(1.0):
        since = here.waiting
        if since is None or here.has_lost or time.monotonic() - since < heartbeat.environment.timeout + OVERTIME:
            continue
        error = RankLost(why_lost(f"waited for {time.monotonic() - since:.0f} s", heartbeat))
        if error.speaks:
            print(f"fds-dist: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def _linger(heartbeat: Heartbeat) -> None:
    """Waits until the others have read the verdict."""
    deadline, lost = time.monotonic() + LINGER, here.verdict.lost if here.verdict else []
    while time.monotonic() < deadline and (signs := heartbeat.signs()) is not None:
        others = [sign for rank, sign in signs.items() if rank not in (heartbeat.environment.rank, *lost)]
        if all(sign.state in (LOST, ENDED) for sign in others):
            return
        time.sleep(0.2)
