"""Downloads a data set once, however many processes and hosts want it in one folder, without a process group."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

from fds_dist.common.faults import Fault, UserError
from fds_dist.common.lock import held

PATIENCE = 3600.0  # seconds to wait for another process that downloads


def download_once(
    root: Path, name: str, is_there: Callable[[], bool], fetch: Callable[[Path], None], patience: float = PATIENCE
) -> None:
    """Puts the files that ``fetch(folder)`` writes below ``root``, unless ``is_there()``.

    Of the processes that call this at the same time, the first to lock the file ``root/.NAME.lock`` fetches, while the
    others, on this host or on another one, wait for up to ``patience`` seconds. The lock ends with its process, however
    that ends, and the next in line fetches afresh. Files move to their places when all are complete.

    Raises `UserError` where fetching fails or takes too long.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with held(root / f".{name}.lock", f"download of {name}", patience):
            if is_there():  # another process was faster
                return
            parts = root / f".{name}.part"
            shutil.rmtree(parts, ignore_errors=True)  # of a process that was killed
            fetch(parts)
            for file in [path for path in parts.rglob("*") if path.is_file()]:
                place = root / file.relative_to(parts)
                place.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, place)
            shutil.rmtree(parts)
    except (OSError, HTTPException, RuntimeError) as error:  # no network, wrong checksum, no space, another downloads
        expected = "a connection and a folder that can be written; or the files in it already, and task.download=false"
        raise UserError(Fault("task.download", f"downloading {name} to {root} failed: {error}", expected)) from error
