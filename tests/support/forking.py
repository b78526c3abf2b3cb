"""Starting programs as forks of a Python that has imported PyTorch, because imports take longer than a small run.

A fork runs as `__main__`, with an environment, a folder and files of its own, and ends as an interpreter does. As a
program, `python forking.py` is the process that is forked. All processes that run tests of one session fork the same
ones, which they meet in a folder; it ends with the last of them.
"""

from __future__ import annotations

import atexit
import fcntl
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import types
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

IMPORTED = (
    "torch._dynamo",  # which the first derivative by torch.func imports
    "torch._decomp.decompositions_for_jvp",
    "torch.distributed.nn.functional",
    "sklearn.datasets",
    "matplotlib.figure",
    "matplotlib.backends.backend_svg",
    "jinja2",
    "fds_dist.cli",
    "fds_dist.commands.optimize.command",
)
PLACE = "FORKS_MEET_IN"
"""The variable that names the folder in which parents of forks are met."""
READ_AT_THE_START = ("PYTHON", "OMP_", "MKL_", "LD_", "LC_", "LANG", "MALLOC_", "TORCH", "CUDA", "CUBLAS", "MPL")
"""Beginnings of the variables that Python, the C library and others read only when they start or are imported."""


def forkable(environment: Mapping[str, str]) -> bool:
    """Whether a fork of this process's child would run as a new interpreter with `environment` does."""
    names = {name for name in {*environment, *os.environ} if name.startswith(READ_AT_THE_START)} - {"PYTHONPATH"}
    return all(environment.get(name) == os.environ.get(name) for name in names)


class Forked:
    """A running fork, with what tests use of `subprocess.Popen`; both outputs go to files that `communicate` reads.

    Args:
        outputs: descriptors of other files that they go to, pipes perhaps.
        ppid: the process that the fork takes for its parent; without it, the true one.
    """

    def __init__(
        self,
        parent: socket.socket,
        command: Sequence[str],
        folder: Path,
        env: Mapping[str, str],
        outputs: Sequence[int] = (),
        ppid: int | None = None,
    ) -> None:
        self.returncode: int | None = None
        self._said: tuple[str, str] | None = None
        own = () if outputs else range(2)
        self._outputs = [tempfile.TemporaryFile() for _ in own]  # noqa: SIM115 (open until they are read)
        self._status, status = os.pipe()
        asked = {"command": list(command), "folder": str(folder), "environment": dict(env), "ppid": ppid}
        request = json.dumps(asked).encode()
        files = [*(outputs or (file.fileno() for file in self._outputs)), status]
        socket.send_fds(parent, [len(request).to_bytes(4, "big")], files)
        parent.sendall(request)
        os.close(status)
        self.pid = self._number()

    def _number(self) -> int:
        return int.from_bytes(os.read(self._status, 4), "big", signed=True)

    def poll(self) -> int | None:
        """See `wait`; None while it runs."""
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self.returncode = self._number()
            os.close(self._status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status, or minus the signal that has ended it."""
        if self.returncode is None:
            select.select([self._status], [], [], timeout)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        return status

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it has written to both outputs, once it has ended."""
        self.wait(timeout)
        if self._said is None:
            out, err = map(_text, self._outputs)
            self._said = out, err
        return self._said

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@cache
def meeting_place() -> Path:
    """The folder in which the processes of one session meet the parents of forks; the first one to ask makes it."""
    if PLACE not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="forks-")
        atexit.register(folder.cleanup)
        os.environ[PLACE] = folder.name
    return Path(os.environ[PLACE])


@cache
def parent(number: int) -> socket.socket:
    """The channel to the parent of forks of this number, which is started where it does not run yet.

    Interpreters order their sets differently; programs that must agree although they do are forks of different parents.
    """
    path = meeting_place() / f"parent-{number}"
    channel = socket.socket(socket.AF_UNIX)
    atexit.register(channel.close)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            channel.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            path.unlink(missing_ok=True)
            _start_parent(path)
            channel.connect(str(path))
    return channel


def _start_parent(path: Path) -> None:
    """Starts a process that serves whoever connects to the socket at `path`."""
    folder = Path(__file__).parent
    # As `python -m fds_dist` sets it before it imports PyTorch.
    environment = {"TORCH_CPP_LOG_LEVEL": "ERROR"} | os.environ
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (folder, folder.parents[1])))
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(path))
        door.listen()
        command = [sys.executable, __file__, str(door.fileno())]
        subprocess.Popen(command, pass_fds=[door.fileno()], stdin=subprocess.DEVNULL, env=environment)


def _text(file: IO[bytes]) -> str:
    with file:
        file.seek(0)
        return file.read().decode()


# --- in the process that is forked ---


def serve(door: socket.socket) -> dict[str, Any]:
    """Forks for each request of those who come in, until the last of them has left; returns in the forks, with their
    request."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    channels = [door.accept()[0]]
    while channels:
        for ready in select.select([door, *channels], [], [])[0]:
            if ready is door:
                channels.append(door.accept()[0])
                continue
            head, files, _, _ = socket.recv_fds(ready, 4, 3)
            if not head:
                channels.remove(ready)
                ready.close()
                continue
            request = json.loads(_exactly(ready, int.from_bytes(head, "big")))
            if os.fork() == 0:
                return _guarded([door, *channels], request, *files)
            for file in files:
                os.close(file)
    os._exit(0)


def _exactly(channel: socket.socket, size: int) -> bytes:
    parts = b""
    while len(parts) < size:
        parts += channel.recv(size - len(parts))
    return parts


def _guarded(sockets: list[socket.socket], request: dict[str, Any], out: int, err: int, status: int) -> dict[str, Any]:
    """Forks once more; this process tells number and status of the fork and ends with it."""
    for each in sockets:
        each.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    fork = os.fork()
    if fork:
        os.write(status, fork.to_bytes(4, "big"))
        code = os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1])
        os.write(status, code.to_bytes(4, "big", signed=True))
        os._exit(0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(out, 1)
    os.dup2(err, 2)
    for file in (out, err, status):
        os.close(file)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    _look_around_again(request["ppid"])
    return request


def _look_around_again(ppid: int | None) -> None:
    """Python asks once whether its outputs are files or pipes."""
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # noqa: SIM115 (open to the end)
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, closefd=False, errors="backslashreplace")  # noqa: SIM115
    if ppid is not None:
        os.getppid = lambda: ppid


def run(command: list[str]) -> None:
    """As `python command...` does."""
    first, *rest = command
    if first == "-u":
        sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
        first, *rest = command = rest
    if first == "-m":
        sys.argv, sys.path[0] = rest, str(Path.cwd())
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        return
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    if first == "-c":
        sys.argv, sys.path[0], code = ["-c", *rest[1:]], "", compile(rest[0], "<string>", "exec")
    else:
        main.__file__ = first
        sys.argv, sys.path[0] = command, str(Path(first).parent)
        code = compile(Path(first).read_bytes(), first, "exec")
    exec(code, main.__dict__)


if __name__ == "__main__":
    for module in IMPORTED:
        importlib.import_module(module)
    gc.freeze()  # a fork that collects garbage would copy all that is imported
    run(serve(socket.socket(fileno=int(sys.argv[1])))["command"])
