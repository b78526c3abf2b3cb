"""A network file system: folders on which an exported folder is mounted with sshfs, each with caches of its own.

What one mount writes another shows late, and a lock of one is none of the other's: as on two hosts whose NFS is mounted
with `nolock`. An sftp server per mount is the file server; a socket pair is the network.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from launching import wait_for

CACHE_SECONDS = 4
"""How long a mount believes what it knows of a name, that it is not there included."""

SFTP_SERVERS = ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server")


def lacking() -> str:
    """What keeps this host from mounting an exported folder; "" where nothing does."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "there is no /dev/fuse that may be opened"
    tools = ("sshfs", "fusermount3")
    missing = [tool for tool in tools if shutil.which(tool) is None] + ([] if _sftp_server() else ["sftp-server"])
    return f"there is no {missing[0]}" if missing else ""


@dataclass(frozen=True)
class Mount:
    """One host's view of the exported folder."""

    path: Path
    client: subprocess.Popen[bytes]

    def hang(self) -> None:
        """Leaves every access waiting, until `answer`."""
        self.client.send_signal(signal.SIGSTOP)

    def answer(self) -> None:
        self.client.send_signal(signal.SIGCONT)

    def lose(self) -> None:
        """Lets every access fail: the transport endpoint is not connected."""
        self.client.kill()
        self.client.wait()


@contextmanager
def mounted(export: Path, *points: Path) -> Iterator[list[Mount]]:
    """`export` on each of `points`, folders which are made; none of them is mounted any more at the end."""
    export.mkdir(exist_ok=True)
    with ExitStack() as stack:
        yield [stack.enter_context(_mount(export, point)) for point in points]


@contextmanager
def _mount(export: Path, point: Path) -> Iterator[Mount]:
    point.mkdir()
    caches = ("dcache_timeout", "attr_timeout", "entry_timeout", "negative_timeout")
    options = ",".join(["passive", *(f"{cache}={CACHE_SECONDS}" for cache in caches)])
    here, there = socket.socketpair()
    with here, there:  # each process has its end
        server = _connected([_sftp_server()], there)
        client = _connected(["sshfs", "-f", f":{export}", str(point), "-o", options], here)
    try:
        wait_for(lambda: os.path.ismount(point) or client.poll() is not None)
        assert client.poll() is None, "sshfs has ended"
        yield Mount(point, client)
    finally:
        with suppress(ProcessLookupError):
            client.send_signal(signal.SIGCONT)
        subprocess.run(["fusermount3", "-u", "-z", str(point)], check=False, capture_output=True)
        for process in (client, server):
            process.kill()
            process.wait()


def _connected(command: list[str], end: socket.socket) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdin=end.fileno(), stdout=end.fileno(), start_new_session=True)


def _sftp_server() -> str:
    return next((path for path in SFTP_SERVERS if os.access(path, os.X_OK)), "")
