"""A TensorBoard event file, in the format of the ``tensorboard`` package.

Its own writer writes in a thread, which ends with a traceback where the disk is full.
"""

from __future__ import annotations

import os
import socket
import time
from itertools import count
from pathlib import Path
from typing import Any

from fds_dist.common.files import WriteFailed, writing

_files = count()


class EventFile:
    """A new event file in `folder`. What is added is in the file at once, so that TensorBoard shows it.

    Raises:
        ImportError: the package is missing.
        WriteFailed: the disk is full, or the folder cannot be written; so do `add` and `close`.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboard.summary.writer.record_writer import RecordWriter

        name = f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}.{next(_files)}"
        self._path, self._event = folder / name, Event
        with writing(self._path):
            folder.mkdir(parents=True, exist_ok=True)
            self._records = RecordWriter(self._path.open("wb", buffering=0))
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add(self, step: int, summary: Any) -> None:
        """Adds a `Summary` message at a step."""
        self._write(self._event(wall_time=time.time(), step=step, summary=summary))

    def close(self) -> None:
        """Ends the file."""
        with writing(self._path):
            self._records.close()

    def _write(self, event: Any) -> None:
        try:
            with writing(self._path):
                self._records.write(event.SerializeToString())
        except WriteFailed:
            self._records.close()  # nobody will
            raise
