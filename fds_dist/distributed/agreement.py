"""Before there is a process group: the store where ranks meet, and mistakes that only some ranks see."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from datetime import timedelta
from functools import cache
from itertools import count
from typing import TypeVar

from torch.distributed import DistError
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from fds_dist.common.faults import Fault, UserError
from fds_dist.common.words import plural
from fds_dist.distributed.environment import LaunchEnvironment

Made = TypeVar("Made")

TIMEOUT = timedelta(minutes=10)
"""After this long without an answer from another rank a run ends with an error instead of waiting for ever."""

STORE_LINGER = timedelta(seconds=10)
"""How long the rank that hosts the store stays for those which are still reading."""

_meetings = count()


class RankLost(RuntimeError):
    """Another rank ended or did not answer in time."""

    def __init__(self, reason: str) -> None:
        minutes = TIMEOUT.total_seconds() / 60
        super().__init__(f"another rank ended, or was silent for {minutes:g} minutes; what it said is why ({reason})")


@contextmanager
def rank_errors() -> Iterator[None]:
    """Inside, ranks talk to each other; PyTorch raises alike for a closed connection and for a timeout.

    Raises:
        RankLost: one of them is gone.
    """
    try:
        yield
    except RuntimeError as error:
        reason = next(iter(str(error).splitlines()), "")
        raise RankLost(re.sub(r"^\[[^]]*\] ", "", reason)) from error  # without the line in PyTorch's source


def shared_store(environment: LaunchEnvironment) -> Store:
    """A fresh part of the store that all ranks share; they must call this alike, the same number of times."""
    # torchrun keeps its store over a restart, with all that the ranks before it said. (Of several nodes each counts its
    # own restarts; there launch/multi_node.sh asks torchrun for a fresh store each time.)
    one_node = environment.local_world_size == environment.world_size
    attempt = environment.restarts if one_node else 0
    return PrefixStore(f"fds-dist/{attempt}/{next(_meetings)}", _store(environment))


@cache  # one connection per process: a second host on the same port could not tell its clients from the first one's
def _store(environment: LaunchEnvironment) -> Store:
    address = environment.master_address
    host = f"[{address}]" if ":" in address else address
    url = f"tcp://{host}:{environment.master_port}"
    store, _, _ = next(iter(rendezvous(url, environment.rank, environment.world_size, timeout=TIMEOUT)))
    return store


def on_all_ranks(environment: LaunchEnvironment, make: Callable[[], Made]) -> Made:
    """`make()` on every rank. Where it raises `UserError` on any rank, all ranks raise one with the faults of all.

    So a file that is missing on one rank ends the run everywhere, instead of leaving the other ranks waiting.
    """
    if not environment.distributed:
        return make()
    with rank_errors():
        store = shared_store(environment)
    made: Made | None = None
    faults: Sequence[Fault] = ()
    try:
        made = make()
    except UserError as error:
        faults = error.faults
    except Exception as error:  # not the user's doing: this rank shows a traceback, the others must not wait for it
        _publish(store, environment.rank, [Fault("", f"{type(error).__name__}: {error}")])
        raise
    with rank_errors():
        _publish(store, environment.rank, faults)
        found = merged_faults([_published(store, rank) for rank in range(environment.world_size)])
    if not found:
        return made  # type: ignore[return-value]
    _leave_last(store, environment)
    raise UserError(found)


def merged_faults(by_rank: Sequence[Sequence[Fault]]) -> list[Fault]:
    """The faults of all ranks, each once; those that only some ranks found name them."""
    merged = []
    for fault in dict.fromkeys(fault for faults in by_rank for fault in faults):
        ranks = [rank for rank, faults in enumerate(by_rank) if fault in faults]
        if len(ranks) < len(by_rank):
            names = ", ".join(map(str, ranks))
            where = f"on {plural(len(ranks), 'rank')} {names} only"
            fault = replace(fault, problem=f"{fault.problem} ({where})")
        merged.append(fault)
    return merged


def _publish(store: Store, rank: int, faults: Sequence[Fault]) -> None:
    store.set(f"faults/{rank}", json.dumps([asdict(fault) for fault in faults]))


def _published(store: Store, rank: int) -> list[Fault]:
    return [Fault(**fields) for fields in json.loads(store.get(f"faults/{rank}"))]


def _leave_last(store: Store, environment: LaunchEnvironment) -> None:
    """The first rank may host the store: it goes when the others have read."""
    if environment.rank:
        store.set(f"read/{environment.rank}", "")
        return
    with suppress(DistError):  # where some rank is gone already, nothing is lost
        store.wait([f"read/{rank}" for rank in range(1, environment.world_size)], STORE_LINGER)
