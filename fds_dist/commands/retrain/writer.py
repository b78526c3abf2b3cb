"""The thread that writes a retraining's files, while training goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from fds_dist.distributed.mesh import Ranks


class Writer:
    """Rank 0 writes what is copied already, one save at a time. All ranks call every method alike."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._save: Future[None] | None = None

    def begin(self, write: Callable[[], None]) -> None:
        """Begins to call `write`, after `finish`."""
        if self._ranks.is_first:
            self._save = self._thread.submit(write)

    def finish(self) -> None:
        """Returns once all is on disk.

        Raises:
            WriteFailed: on every rank; what was begun could not be written.
        """
        self._ranks.on_first(self._finish)

    def _finish(self) -> None:
        save, self._save = self._save, None
        if save is not None:
            save.result()

    def close(self) -> None:
        """Waits for the thread; what could not be written stays untold, since another error ends the retraining."""
        self._thread.shutdown()
