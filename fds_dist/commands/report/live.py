"""The page of a search that goes on: written by the search itself, or by `fds-dist report --watch` beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fds_dist.commands.report.page import write_report
from fds_dist.commands.report.reading import read_run
from fds_dist.common.faults import UserError
from fds_dist.storage.run_folder import RunFolder

SHARE = 0.01
"""The most that writing the page may take of a search's time."""
PAUSE = 30.0
"""Seconds that pass at least from one page to the next."""
FIRST = 150.0
"""Seconds before the first page: drawing takes 1.3 s of a CPU for 9 learned numbers, 3 s for 242."""
LOOK = 5.0
"""Seconds after which `watch` looks at the run again."""


class LivePage:
    """The page in a run's folder. An error in it is said once, and never ends the search.

    Args:
        say: tells the user what went wrong.
        clock: seconds that only grow.
    """

    def __init__(self, folder: RunFolder, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic):
        self._folder, self._say, self._clock = folder, say, clock
        self._failed = False
        self._next = clock() + FIRST

    def outer_step(self) -> None:
        """Writes the page after an outer step, where enough time has passed: the last writing took c seconds, so c /
        `SHARE` pass before another one, and at least `PAUSE`."""
        began = self._clock()
        if began >= self._next and not self._failed:
            self._write(goes_on=True)
            ended = self._clock()
            self._next = ended + max(PAUSE, (ended - began) / SHARE)

    def finish(self) -> Path | None:
        """Writes the page of a search that has ended; None where that failed."""
        return self._write(goes_on=False)

    def _write(self, goes_on: bool) -> Path | None:
        try:
            return write_report([read_run(self._folder.path)], self._folder.report, endings=(), goes_on=goes_on)
        except Exception as error:
            if not self._failed:
                reason = " ".join(str(error).split()) or type(error).__name__
                self._say(f"the report was not written: {reason}")
            self._failed = True
            return None


def watch(paths: Sequence[Path], folder: Path, sleep: Callable[[float], None] = time.sleep) -> Path:
    """Writes the page again whenever a run has come further, until all are over or Ctrl-C is pressed.

    Returns:
        The page's path. The last page does not load itself again, and has its figures as files beside it.

    Raises:
        UserError: at the beginning, one of the folders is not a run's, or `folder` cannot be made.
    """
    runs, seen = [read_run(path) for path in paths], [_state(path) for path in paths]
    write_report(runs, folder, endings=(), goes_on=True)
    try:
        while not all(run.is_over for run in runs):
            sleep(LOOK)
            state = [_state(path) for path in paths]
            if state != seen:
                try:
                    runs = [read_run(path) for path in paths]
                    write_report(runs, folder, endings=(), goes_on=True)
                except UserError:  # a file that is being written: it is whole at the next look
                    continue
                seen = state
    except KeyboardInterrupt:
        pass
    return write_report([read_run(path) for path in paths], folder)


def _state(path: Path) -> list[tuple[str, int, int]]:
    """The files that a page shows, with size and time of the last change."""
    files = sorted([*path.glob("*.json*"), *path.glob("retrain*/*/history.jsonl")])
    return [(str(file), status.st_size, status.st_mtime_ns) for file in files if (status := file.stat())]
