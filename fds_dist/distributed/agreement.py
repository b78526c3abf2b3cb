"""Mistakes that only some ranks see, told by all, before there is a process group."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from torch.distributed import DistError
from torch.distributed.distributed_c10d import Store

from fds_dist.common.faults import Fault, UserError
from fds_dist.common.files import VISIBLE_SECONDS, is_visible
from fds_dist.common.out_of_memory import OutOfMemory, is_out_of_memory, memory_text
from fds_dist.common.words import plural
from fds_dist.distributed.environment import LaunchEnvironment
from fds_dist.distributed.errors import rank_errors
from fds_dist.distributed.heartbeat import current
from fds_dist.distributed.lost import another_has_ended
from fds_dist.distributed.store import shared_store

Made = TypeVar("Made")

LOOK = 2.0
"""Seconds from one look at who is still there to the next, while this rank waits for others."""

STORE_LINGER = timedelta(seconds=10)
"""How long the rank that hosts the store waits for ranks that are still reading."""


def on_all_ranks(environment: LaunchEnvironment, make: Callable[[], Made]) -> Made:
    """`make()` on every rank. Where it raises `UserError` on any rank, all ranks raise one with the faults of all.

    So a file that is missing on one rank ends the run everywhere, instead of leaving the other ranks waiting. A rank
    that is out of memory ends all of them with an `OutOfMemory` that names it.
    """
    if not environment.distributed:
        return make()
    with rank_errors():
        store = shared_store(environment)
    made: Made | None = None
    faults: Sequence[Fault] = ()
    lacking = ""
    try:
        made = make()
    except UserError as error:
        faults = error.faults
    except Exception as error:  # perhaps a bug: this rank shows the traceback, and the others must not wait
        if not is_out_of_memory(error):
            _publish(store, environment.rank, [Fault("", f"{type(error).__name__}: {error}")])
            leave_last(environment)  # as the others do: a later call meets them again
            raise
        lacking = memory_text(error)
    with rank_errors():
        _publish(store, environment.rank, faults, lacking)
        by_rank = _published(store, environment)
    if not any(told.faults or told.lacking for told in by_rank):
        return made  # type: ignore[return-value]
    leave_last(environment)
    for rank, told in enumerate(by_rank):
        if told.lacking:
            raise OutOfMemory(told.lacking, rank)
    raise UserError(merged_faults([told.faults for told in by_rank]))


def told_by_all(environment: LaunchEnvironment, value: Any) -> list[Any]:
    """Each rank's `value` (of JSON), in rank order, before there is a process group. All ranks call this alike."""
    if not environment.distributed:
        return [value]
    with rank_errors():
        store = shared_store(environment)
        store.set(f"told/{environment.rank}", json.dumps(value))
        names = [f"told/{rank}" for rank in range(environment.world_size)]
        _wait(store, names, environment)
        return [json.loads(store.get(name)) for name in names]


def await_files(environment: LaunchEnvironment, files: Sequence[Path]) -> None:
    """Returns when this rank sees each of the `files` that rank 0 sees, or when `VISIBLE_SECONDS` have passed.

    Another host may have written them a moment ago: see `is_visible`. All ranks call this alike.
    """
    if not environment.distributed:
        return
    seen = told_by_all(environment, [os.path.isfile(file) for file in files])[0]
    until = time.monotonic() + VISIBLE_SECONDS
    for file, is_there in zip(files, seen, strict=False):  # ranks that were given unlike files find that out later
        if is_there:
            is_visible(file, until)


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


class _Told(NamedTuple):
    """What a rank tells the others of its part."""

    faults: Sequence[Fault]
    lacking: str
    """Of memory; "" where there was enough."""


def _publish(store: Store, rank: int, faults: Sequence[Fault], lacking: str = "") -> None:
    store.set(f"faults/{rank}", json.dumps([[asdict(fault) for fault in faults], lacking]))


def _published(store: Store, environment: LaunchEnvironment) -> list[_Told]:
    """What each rank has told, in rank order."""
    keys = [f"faults/{rank}" for rank in range(environment.world_size)]
    _wait(store, keys, environment)
    contents = [json.loads(store.get(key)) for key in keys]
    return [_Told([Fault(**fields) for fields in faults], lacking) for faults, lacking in contents]


def _wait(store: Store, keys: Sequence[str], environment: LaunchEnvironment) -> None:
    """Returns once all `keys` are in the store.

    The store alone would wait for a rank that was killed until the time is up: no connection to it closes here.

    Raises:
        DistError: `environment.timeout` has passed, or a rank has ended.
    """
    began, looks, heartbeat = time.monotonic(), 1, current()
    while not store.check(list(keys)):
        waited = time.monotonic() - began
        if waited > environment.timeout:
            raise DistError(f"waited for {waited:.0f} s")
        if heartbeat is not None and waited > looks * LOOK:
            looks += 1
            if another_has_ended(heartbeat) and not store.check(list(keys)):
                raise DistError("it left before the ranks had agreed")
        time.sleep(0.01)


def leave_last(environment: LaunchEnvironment) -> None:
    """Rank 0 may host the store, so it returns after the others have read from it. All ranks call this alike, before
    they end."""
    store = shared_store(environment)
    if environment.rank:
        store.set(f"read/{environment.rank}", "")
        return
    with suppress(DistError):  # where some rank is gone already, nothing is lost
        store.wait([f"read/{rank}" for rank in range(1, environment.world_size)], STORE_LINGER)
