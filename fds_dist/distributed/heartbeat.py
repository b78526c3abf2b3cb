"""Signs of life: where each rank is, written every few seconds into the store that all ranks share.

A rank that waits for others in vain reads the signs: which rank has ended, is silent, or is busy with something else. A
step pays for them with two attributes.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, cast

from torch.distributed.distributed_c10d import Store

from fds_dist.common.faults import user_line_of
from fds_dist.distributed.environment import LaunchEnvironment
from fds_dist.distributed.processes import identity, name_space

Answer = TypeVar("Answer")
_Question = tuple[Callable[[Store], Any], Future[Any]]

LONGEST_INTERVAL = 5.0
"""Seconds from one sign of life to the next; a fifth of `distributed.timeout` where that is less."""

FIRST_LOOK = 0.02
"""Seconds until the next sign while rank 0 has given none: once the store is lost, nobody tells where rank 0 was."""

PATIENCE = 5.0
"""Seconds after which a store that does not answer counts as silent, with the host of the process that has it."""

BUSY, WAITING, LOST, ENDED = "busy", "waiting", "lost", "ended"
"""States of a rank: it computes; it waits for other ranks; it has lost one of them; its run is over."""


class Verdict(NamedTuple):
    """What the ranks have found out about a rank that is lost, in values of JSON."""

    text: str
    lost: list[int]
    """The ranks that cannot tell it."""
    interrupted: bool = False
    """Whether these ranks have said that they were interrupted, and no more."""


@dataclass
class Here:
    """Where this process is. Whoever takes steps writes it; the heartbeat reads it."""

    place: str = ""
    """Of the last step, with `{}` for its number: `inner step {} of outer step 0`."""
    step: int = 0
    waiting: float | None = None
    """Since when (`time.monotonic`) it waits for other ranks; None while it does not."""
    has_lost: bool = False
    """Whether it has lost another rank."""
    verdict: Verdict | None = None
    """What another rank has found out meanwhile."""

    def begin(self) -> None:
        """At the start of a run, and of none."""
        self.place, self.step, self.waiting, self.has_lost, self.verdict = "", 0, None, False, None

    @property
    def words(self) -> str:
        """`inner step 40 of outer step 0`; "" before the first."""
        return self.place.format(self.step)

    @property
    def state(self) -> str:
        return LOST if self.has_lost else BUSY if self.waiting is None else WAITING


here = Here()


class Sign(NamedTuple):
    """A sign of life, in values of JSON."""

    number: int
    clock: float
    """Seconds, by the clock of its host."""
    state: str
    place: str
    """The last step, in words; "" before the first."""
    since: float
    """Seconds, by the same clock: since when place and state are the same."""
    line: str
    """` at file:line` of the user's own code that runs; "" where there is none, or where the rank makes progress."""
    host: str
    pid: int
    process: str
    """The identity of the process."""
    space: str
    """The name space of its number."""


class Heartbeat:
    """The thread that writes this rank's signs, and reads those of the others where it is asked to.

    Its connection to the store is its own: the connection of the run may wait for minutes. All that is asked of the
    store goes through the thread, since a store whose process is stopped keeps a caller waiting for ever.

    Args:
        store: a part of the shared store that is used for nothing else, the same on all ranks.
        line: a connection that closes with the process that has the store; None where there is none.
        store_of_rank_0: whether rank 0 has the store; else the launcher has.
    """

    def __init__(
        self, store: Store, line: socket.socket | None, environment: LaunchEnvironment, store_of_rank_0: bool
    ) -> None:
        self.environment, self.store_of_rank_0 = environment, store_of_rank_0
        self.mine = _next_sign(None, 0, ended=False)
        """This rank's newest sign."""
        self.first: Sign | None = None
        """The newest sign of rank 0 that was read."""
        self._store, self._line = store, line
        self._questions: queue.SimpleQueue[_Question | None] = queue.SimpleQueue()
        self._gone, self._is_silent = threading.Event(), False
        self._thread = threading.Thread(
            target=self._run, args=(threading.get_ident(),), name="fds-dist heart", daemon=True
        )

    @property
    def interval(self) -> float:
        """Seconds from one sign to the next."""
        return min(LONGEST_INTERVAL, self.environment.timeout / 5)

    @property
    def store_is_gone(self) -> bool:
        """Whether the store has ended; it may also be silent."""
        return self._gone.is_set()

    def start(self) -> None:
        """Starts the thread, and waits until the first sign is written: a rank that is lost next can be named."""
        self._thread.start()
        self.ask(lambda store: None)

    def stop(self) -> None:
        """Writes the last sign, and ends the thread, which would abort the interpreter's end; of a silent store it does
        not wait for the end."""
        self._questions.put(None)
        if not self._is_silent:
            self._thread.join(10 * PATIENCE)

    def signs(self) -> dict[int, Sign] | None:
        """rank → the newest sign of each rank that has written any; None where the store is gone or silent."""
        ranks = range(self.environment.world_size)
        read = self.ask(lambda store: [_read(store, rank) for rank in ranks])
        return None if read is None else {rank: sign for rank, sign in enumerate(read) if sign is not None}

    def agreed(self, verdict: Verdict) -> Verdict:
        """The first verdict of all ranks, which may be another one; `verdict` where the store is gone or silent."""
        answer = self.ask(lambda store: store.compare_set("verdict", "", json.dumps(verdict)))
        return Verdict(*json.loads(answer)) if answer else verdict

    def ask(self, question: Callable[[Store], Answer]) -> Answer | None:
        """What the thread is answered; None where the store is gone or silent."""
        future: Future[Any] = Future()
        self._questions.put((question, future))
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and not (future.done() or self._gone.is_set()):
            time.sleep(0.01)
        self._is_silent = not (future.done() or self._gone.is_set())
        return future.result() if future.done() else None

    def _run(self, main_thread: int) -> None:
        try:
            store, request = cast(Any, self._store).clone(), _nothing()
            while True:
                self.mine = _next_sign(self.mine, main_thread, ended=request is None)
                if self._line is not None and _is_closed(self._line):
                    self._gone.set()
                    return
                store.set(f"sign/{self.environment.rank}", json.dumps(self.mine))
                if request is None:
                    return
                question, future = request
                future.set_result(question(store))
                self.first = _read(store, 0) or self.first
                if here.verdict is None and store.check(["verdict"]):
                    here.verdict = Verdict(*json.loads(store.get("verdict")))
                try:
                    request = self._questions.get(timeout=self.interval if self.first else FIRST_LOOK)
                except queue.Empty:
                    request = _nothing()
        except RuntimeError:  # the store has ended
            self._gone.set()
        finally:
            if self._line is not None:
                self._line.close()


def _is_closed(line: socket.socket) -> bool:
    """Whether the other end has closed it; nothing is ever sent over it."""
    try:
        return line.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _nothing() -> _Question:
    return (lambda store: None), Future()


def _read(store: Store, rank: int) -> Sign | None:
    key = f"sign/{rank}"
    return Sign(*json.loads(store.get(key))) if store.check([key]) else None


def _next_sign(before: Sign | None, main_thread: int, ended: bool) -> Sign:
    now, state, place = time.time(), ENDED if ended else here.state, here.words
    stays = before is not None and (before.state, before.place) == (state, place)
    frame = sys._current_frames().get(main_thread) if stays and state == BUSY else None
    return Sign(
        number=before.number + 1 if before else 0,
        clock=now,
        state=state,
        place=place,
        since=before.since if before and stays else now,
        line=user_line_of(frame) if frame else "",
        host=socket.gethostname(),
        pid=os.getpid(),
        process=identity(os.getpid()),
        space=name_space(),
    )


_current: Heartbeat | None = None


def current() -> Heartbeat | None:
    """That of this process; None where it has none."""
    return _current


def make_current(heartbeat: Heartbeat | None) -> None:
    """`heartbeat` is that of this process from now on, and its run begins."""
    global _current
    _current = heartbeat
    here.begin()
