"""The thread that writes a rank's file of a checkpoint, while training goes on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from fds_dist.common.files import WriteFailed, digest, writing
from fds_dist.inner.checkpoint_files import Part


@dataclass(frozen=True)
class Written:
    """What became of a rank's file."""

    name: str
    part: Part | None
    """None where it was not written."""
    problem: str = ""


@dataclass(frozen=True)
class CheckpointWrite:
    """A checkpoint that is being written: one at a time."""

    folder: Path
    step: int
    """That it was kept after."""
    file: Future[Written]
    """This rank's."""


class CheckpointWriter:
    """Writes files one after the other in a thread, which lets the program run: the library writes and the checksum is
    taken outside Python's lock."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None

    def begin(
        self, path: Path, step: int, tensors: Mapping[str, Tensor], start: int, elements: Sequence[int]
    ) -> CheckpointWrite:
        """Begins to write `tensors`, which nobody changes any more."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        file = self._thread.submit(_write, path, dict(tensors), start, list(elements))
        return CheckpointWrite(path.parent, step, file)

    def close(self) -> None:
        """Waits for what is being written."""
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None


def _write(path: Path, tensors: dict[str, Tensor], start: int, elements: list[int]) -> Written:
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, path)
            with path.open("rb") as file:
                os.fsync(file.fileno())
            return Written(path.name, Part(digest(path), start, elements))
    except WriteFailed as error:
        return Written(path.name, None, str(error))
    except SafetensorError as error:
        return Written(path.name, None, f"cannot write {path}: {error}")
