"""The lock on a folder that a command writes to: of two processes at work in one folder, the second is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fds_dist.common.access import writable
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.files import writing
from fds_dist.common.lock import InUse, held

if TYPE_CHECKING:
    from fds_dist.distributed.mesh import Ranks

NAME = ".lock"


@contextmanager
def locked(folder: Path, command: str, key: str, ranks: Ranks | None = None) -> Iterator[None]:
    """Inside, no other command writes to `folder`, which is made if need be. All ranks call this alike; rank 0 locks.

    Args:
        command: what this process does, for the message to a second one.
        key: the argument or the config's key by which the user names the folder.

    Raises:
        UserError: on every rank: another command is at work in the folder, or nothing can be written there.
        WriteFailed: on every rank: the disk is full.
    """
    with ExitStack() as stack:
        if ranks is None:
            stack.enter_context(_held(folder, command, key))
        else:
            ranks.on_first(lambda: stack.enter_context(_held(folder, command, key)))
        yield


@contextmanager
def _held(folder: Path, command: str, key: str) -> Iterator[None]:
    path = folder / NAME
    with ExitStack() as stack:
        with writable(folder, key), writing(path):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(held(path, command))
            except InUse as error:
                problem = f"{folder} is in use by {error.holder or 'another process'}"
                raise UserError(Fault(key, problem, "a folder in which no other command is at work")) from None
        yield
