"""The base class of callbacks, which follow a search and may stop it."""

from __future__ import annotations

from fds_dist.tracking.records import InnerBlock, OuterRecord, RunEnd, RunStart


class Stop(Exception):
    """Ends a search cleanly, on all ranks: returned by a hook of a `Callback`, or raised inside it.

    Args:
        reason: what the closing line says; "" says only which callback it was.
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


class Callback:
    """Follows a search and may stop it. A subclass overrides the hooks that it needs.

    Rank 0 alone calls a hook, once per event; all ranks then learn whether it stops the search. So a hook may look at
    the clock, read a file or draw a random number without the ranks coming apart, and it prints once. Ranks wait for
    it: keep it short. A hook answers None to go on, or `Stop`, returned or raised. Any other answer, and any other
    exception, ends the search with one line that names the hook (`UserError`). Either way the outer steps that are done
    stay done, and `optimize(resume=...)` continues after them.

    ```python
    class Enough(fds_dist.Callback):
        def outer_step(self, record):
            if record.val_accuracy and record.val_accuracy > 0.95:
                return fds_dist.Stop("95 % is enough")
    ```
    """

    def run_start(self, run: RunStart) -> Stop | None:
        """The search begins, or continues after an interruption; its folder is there."""

    def inner_block(self, block: InnerBlock) -> Stop | None:
        """Some inner steps are done: about a hundredth of the inner run of an outer step.

        Stopping here gives this outer step up; a resumed search takes it up from its last checkpoint, or anew. With
        `mesh.replica` above 1 the search ends only after the outer step, for the replicas' inner runs are independent.
        """

    def outer_step(self, record: OuterRecord) -> Stop | None:
        """An outer step is done; `history.jsonl`, `schedule.json` and a checkpoint have it already."""

    def run_end(self, end: RunEnd) -> None:
        """The search has ended, successfully or not. What goes wrong here is a note."""
