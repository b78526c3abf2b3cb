"""``history.jsonl``: the record of a run, one line per outer step."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from fds_dist.common.files import WriteFailed, append, writing
from fds_dist.common.records import read_records
from fds_dist.tracking.records import OuterRecord, RunStart
from fds_dist.tracking.trackers import Tracker

EXPECTED = "a run's history.jsonl"


def read_history(path: Path | str) -> list[OuterRecord]:
    """The records of a history file, in its order. An incomplete last line (without a newline) is left out.

    Raises:
        UserError: the file cannot be read, or a line is not a record (the message has the line's number).
    """
    return [record for record, _ in read_records(Path(path), OuterRecord, EXPECTED)]


def steps_before(run_dir: Path, outer_step: int) -> int:
    """The inner steps of the run in this folder before this outer step: the sum of the earlier horizons."""
    path = run_dir / "history.jsonl"
    if outer_step == 0 or not path.exists():
        return 0
    return sum(record.horizon for record in read_history(path) if record.outer_step < outer_step)


class HistoryFile(Tracker):
    """Appends one line per outer step. The line is on disk before the run continues.

    A resumed run continues the file, after removing an incomplete last line and the outer steps that will be repeated.
    Starting a new run on an existing file raises FileExistsError.
    """

    required = True

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        self._started = False

    def start(self, run: RunStart) -> None:
        exists = self._path.exists()
        if exists and not run.resumed:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self._path))
        with writing(self._path):
            if exists:
                os.truncate(self._path, _bytes_before(self._path, run.first_outer_step))
            self._path.touch()
        self._started = True

    def outer(self, record: OuterRecord) -> None:
        if not self._started:
            raise RuntimeError("HistoryFile.start comes before HistoryFile.outer")
        if not self._path.exists():  # it went with the folder: a file of the rest would be no record of the run
            raise WriteFailed(errno.ENOENT, os.strerror(errno.ENOENT), str(self._path))
        append(self._path, f"{record.to_json()}\n".encode())


def _bytes_before(path: Path, outer_step: int) -> int:
    """The number of bytes of the records before this outer step."""
    size = 0
    for record, end in read_records(path, OuterRecord, EXPECTED):
        if record.outer_step >= outer_step:
            break
        size = end
    return size
