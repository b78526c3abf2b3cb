"""A lock that one process holds at a time, also of processes on hosts that share nothing but the file system.

The lock is a file with a line of JSON about its holder. `flock` locks it as long as the holder
lives: the kernel lets go of it whatever ends the process. NFS hands such a lock to its server, unless it is mounted
with `nolock` or `local_lock`; other file systems that hosts share have no locks, or a set of them for each mount.
Therefore a thread of the holder renews the time of the file, as a sign of life. Where the file system is none of this
host's alone, a lock that the kernel gives is refused nevertheless while its file shows signs of life.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from fds_dist.common.files import VISIBLE_SECONDS
from fds_dist.common.records import from_line, to_line

BEAT_SECONDS = 5.0
"""Between two signs of life."""

SILENT_SECONDS = 20.0
"""A holder that shows no sign of life for so long is gone. Network file systems show the new time of a file at once
where the file is opened again; a busy host is late with its signs."""

SETTLE_SECONDS = 0.5
"""Where the kernel's lock is not all hosts', two that write their lines at once: after so long the last line counts."""

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
"""What `flock` says where the file system has no locks."""

OF_ONE_HOST = {"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "ramfs", "tmpfs", "xfs", "zfs"}
"""Types of file systems whose locks are those of all processes that can reach them."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lock: the content of its file."""

    host: str
    boot: str
    """Linux's names for the time since the host's last start and for the set of process numbers, of which each
    container has its own; "" on other systems."""
    process: int
    command: str
    since: str

    @classmethod
    def this_process(cls, command: str) -> Holder:
        """A holder that begins now."""
        since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        return cls(socket.gethostname(), _boot(), os.getpid(), command, since)

    @property
    def is_here(self) -> bool:
        """Whether its number is that of a process which can be seen from here, if it runs still."""
        return self.boot == _boot() and (self.boot != "" or self.host == socket.gethostname())

    def __str__(self) -> str:
        return f"`{self.command}` of process {self.process} on host {self.host}, since {self.since}"


class InUse(RuntimeError):
    """Another process holds the lock.

    Attributes:
        holder: who that is; None where it has not said so.
    """

    def __init__(self, path: Path, holder: Holder | None) -> None:
        self.holder = holder
        super().__init__(f"{holder or 'another process'} still holds {path}")


@contextmanager
def held(path: Path, command: str, patience: float = 0.0) -> Iterator[None]:
    """Inside, this process holds the lock that is the file `path`, which is gone afterwards.

    Args:
        command: what this process does, as others are told.
        patience: seconds to wait for another holder.

    Raises:
        InUse: another process holds it.
        OSError: the file cannot be made or written.
    """
    this, until = Holder.this_process(command), time.monotonic() + patience
    while True:
        try:
            file = _acquired(path, this)
            break
        except InUse:
            if time.monotonic() >= until:
                raise
            time.sleep(0.1)
    ended = threading.Event()
    threading.Thread(target=_show_life, args=(file, ended), name="fds-dist lock", daemon=True).start()
    _open_files.add(file)
    try:
        yield
    finally:
        ended.set()
        if file in _open_files:  # not in a process that was forked meanwhile
            _open_files.remove(file)
            _release(file, path, this)


def _acquired(path: Path, this: Holder) -> int:
    """The open file of the lock, which this process holds now.

    Raises:
        InUse: another one holds it.
    """
    while True:
        file, is_mine = _opened(path), False
        try:
            is_locked = _lock(file)
            if _is_at(path, file):  # else the holder has just let go of it and removed it
                holder = _holder(file, patience=1.0 if is_locked is False else 0.0)
                is_sure = is_locked is True and _file_system(path.parent) in OF_ONE_HOST
                if is_locked is False or (holder and not is_sure and _lives(holder, path)):
                    raise InUse(path, holder)
                is_mine = True
                _write(file, this)
                if is_sure or (last := _settled(path)) == this:
                    return file
                is_mine = False
                if last:
                    raise InUse(path, last)
            os.close(file)
        except BaseException:
            if is_mine:
                _release(file, path, this)
            else:
                os.close(file)
            raise


def _opened(path: Path) -> int:
    """The lock's file, made if need be. Over a network a host may see one that is gone, which it can neither open nor
    make until it sees that."""
    until = time.monotonic() + VISIBLE_SECONDS
    while True:
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def _lock(file: int) -> bool | None:
    """Whether this process has locked the file now; None where the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return None
    return True


def _file_system(folder: Path) -> str:
    """The type of the file system that holds the folder, such as "ext4" or "nfs4"; "" where that cannot be told."""
    device = os.stat(folder).st_dev
    with suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            fields = line.split()
            if fields[2] == f"{os.major(device)}:{os.minor(device)}":
                return fields[fields.index("-") + 1]
    return ""


def _settled(path: Path) -> Holder | None:
    """Who the file at `path` names after a while; None where there is no such file any more."""
    time.sleep(SETTLE_SECONDS)
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        return _holder(file, patience=1.0)
    finally:
        os.close(file)


def _lives(holder: Holder, path: Path) -> bool:
    """Whether the holder of a lock that the kernel does not refuse is at work nevertheless."""
    if holder.is_here and not _runs(holder.process):
        return False
    until = time.monotonic() + SILENT_SECONDS
    with suppress(FileNotFoundError):  # where the holder lets go of it meanwhile
        last = _beat(path)
        while time.monotonic() < until:
            time.sleep(min(1.0, SILENT_SECONDS / 4))
            if _beat(path) != last:
                return True
    return False


def _beat(path: Path) -> float:
    """The time of the last sign of life; opening the file asks the server."""
    with path.open("rb") as file:
        return os.fstat(file.fileno()).st_mtime


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True


def _show_life(file: int, ended: threading.Event) -> None:
    while not ended.wait(BEAT_SECONDS):
        with suppress(OSError):
            os.utime(file)


def _holder(file: int, patience: float = 0.0) -> Holder | None:
    """Who the file names; None where it names nobody (yet)."""
    until = time.monotonic() + patience
    while True:
        with suppress(OSError, ValueError):
            return from_line(Holder, os.pread(file, 4096, 0))
        if time.monotonic() >= until:
            return None
        time.sleep(0.05)


def _write(file: int, holder: Holder) -> None:
    os.truncate(file, 0)
    os.pwrite(file, f"{to_line(holder)}\n".encode(), 0)
    os.fsync(file)


def _release(file: int, path: Path, this: Holder) -> None:
    """Removes the file while it is locked: whoever has opened it sees then that it is gone. One that another holder has
    taken over stays."""
    with suppress(OSError):
        if _is_at(path, file) and _holder(file) in (this, None):
            path.unlink()
    with suppress(OSError):  # of a file system that is gone
        os.close(file)


def _is_at(path: Path, file: int) -> bool:
    """Whether the open file is the one at `path`."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file))
    except FileNotFoundError:
        return False


def _boot() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


_open_files: set[int] = set()
"""Of the locks that this process holds."""


def _close_in_child() -> None:
    """A forked process, say of a data loader, would hold the lock when its parent has gone."""
    while _open_files:
        os.close(_open_files.pop())


os.register_at_fork(after_in_child=_close_in_child)
