"""The callbacks of a search: rank 0 calls them, and all ranks learn whether one of them ends it."""

from __future__ import annotations

from collections.abc import Sequence

from fds_dist.common.faults import Fault, UserError, user_code
from fds_dist.common.kinds import show
from fds_dist.distributed.mesh import Ranks
from fds_dist.tracking.callbacks import Callback, Stop
from fds_dist.tracking.records import InnerBlock, OuterRecord, RunEnd, RunStart

HOOKS = ("run_start", "inner_block", "outer_step")
"""The hooks that may stop a search."""

Event = RunStart | InnerBlock | OuterRecord | RunEnd


class Callbacks:
    """All callbacks of a search. Each method is called on every rank alike, and raises alike.

    A hook that no callback overrides costs nothing, any other one broadcast per event.

    Raises:
        Stop: a callback wants to stop; the reason names it.
        UserError: a callback raised something else, or gave an answer that is none.
    """

    def __init__(self, callbacks: Sequence[Callback], ranks: Ranks) -> None:
        self._callbacks, self._ranks = callbacks, ranks
        self._replicas = ranks.shape.replica > 1
        self._hooks: set[str] = ranks.on_first(lambda: {hook for hook in HOOKS if self._overridden(hook)})
        self._waiting: Exception | None = None

    def run_start(self, run: RunStart) -> None:
        """See `Callback`, as for all of these."""
        self._call("run_start", run)

    def inner_block(self, block: InnerBlock) -> None:
        if not self._replicas:
            self._call("inner_block", block)
        elif self._ranks.is_first and self._waiting is None:  # the others may not come: their inner run has ended
            self._waiting = self._outcome("inner_block", block)

    def outer_step(self, record: OuterRecord) -> None:
        self._call("outer_step", record)

    def run_end(self, end: RunEnd) -> list[str]:
        """The faults of rank 0's callbacks: nothing is left to stop."""
        fault = self._outcome("run_end", end) if self._ranks.is_first else None
        return str(fault).splitlines() if isinstance(fault, UserError) else []

    def _call(self, hook: str, event: Event) -> None:
        if hook not in self._hooks and not (self._replicas and "inner_block" in self._hooks):
            return
        outcome = self._waiting
        if self._ranks.is_first and outcome is None:
            outcome = self._outcome(hook, event)
        outcome = self._ranks.broadcast_object(outcome)
        if isinstance(outcome, Exception):
            raise outcome

    def _outcome(self, hook: str, event: Event) -> Exception | None:
        """What the hooks of all callbacks say, on rank 0: `Stop`, a fault, or None to go on."""
        stops: list[str] = []
        for callback in self._callbacks:
            name = type(callback).__name__
            try:
                with user_code("callbacks", f"{name}.{hook}"):
                    answer = _answer(callback, hook, event)
            except UserError as error:
                return error
            if isinstance(answer, Stop):
                stops.append(f"{name}: {answer.reason}" if answer.reason else name)
            elif answer is not None:
                expected = "None to go on, or fds_dist.Stop(reason)"
                return UserError(Fault("callbacks", f"{name}.{hook} returned {show(answer)}", expected))
        return Stop("; ".join(stops)) if stops else None

    def _overridden(self, hook: str) -> bool:
        return any(getattr(type(callback), hook) is not getattr(Callback, hook) for callback in self._callbacks)


def _answer(callback: Callback, hook: str, event: Event) -> object:
    try:
        return getattr(callback, hook)(event)
    except Stop as stop:
        return stop
