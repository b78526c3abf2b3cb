"""Two commands in one folder: the second is refused with the first one's host and process, however the first ends."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from blob_searches import CONFIG, optimize
from launching import clean_environment, wait_for

import fds_dist
from fds_dist.common import lock
from fds_dist.common.lock import Holder
from fds_dist.common.records import to_line
from fds_dist.storage.lock import locked
from fds_dist.tasks.download import download_once

HERE = f"process {os.getpid()} on host {socket.gethostname()}, since "
STUDY: dict[str, Any] = CONFIG | {
    "outer": {"steps": 1},
    "compare": {"methods": ["greedy"], "seeds": 1, "judge_seeds": 1},
    "name": "study",
}


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# --- in one process ---


class Meanwhile(fds_dist.Callback):
    """Calls something after each outer step, while the search holds its folder."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.call = call

    def outer_step(self, record: fds_dist.OuterRecord) -> None:
        self.call()


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(fds_dist.UserError) as raised:
        call()
    return str(raised.value)


def test_a_search_is_not_resumed_while_it_runs_and_all_else_is_harmless() -> None:
    lines: list[str] = []

    def others() -> None:
        if lines:
            return
        lines.append(refused(lambda: optimize(resume="runs/run")))
        fds_dist.load_run("runs/run")
        fds_dist.retrain("runs/run", ["epochs=1"], progress=False)

    history = optimize(callbacks=[Meanwhile(others)]).history
    (line,) = lines
    assert line.startswith(f"--resume: runs/run is in use by `fds-dist optimize` of {HERE}")
    assert "\n" not in line
    assert [record.outer_step for record in history] == [0, 1, 2]
    assert not Path("runs/run/.lock").exists()
    assert len(optimize("outer.steps=4", resume="runs/run").history) == 4


def test_a_second_comparison_retraining_or_study_of_noise_in_the_folder_is_refused() -> None:
    optimize("outer.steps=1")
    for folder, command, call in (
        ("runs/run/retrain", "retrain", lambda: fds_dist.retrain("runs/run", ["epochs=1"], progress=False)),
        ("runs/study", "compare", lambda: fds_dist.compare(STUDY, progress=False)),
        ("runs/study", "noise", lambda: fds_dist.noise(STUDY, runs=4, steps=4, progress=False)),
    ):
        with locked(Path(folder), "fds-dist sweep", "KEY"):
            assert f": {folder} is in use by `fds-dist sweep` of {HERE}" in refused(call), command
        call()
        assert not Path(folder, ".lock").exists()


# --- how a holder ends ---

HOLD = """
import os, sys, time
from pathlib import Path
from fds_dist.storage.lock import locked
with locked(Path("held"), "fds-dist optimize", "KEY"):
    forks, lines = len(sys.argv) > 1, os.pipe()
    if forks and os.fork() == 0:  # as a data loader does; it outlives its parent
        os.write(lines[1], b"1")  # it runs, so that it has let go
        time.sleep(60)
        os._exit(0)
    if forks:
        os.read(lines[0], 1)
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("arguments", [[], ["fork"]], ids=["alone", "with a forked child that lives on"])
def test_a_killed_process_leaves_no_lock_behind(arguments: list[str]) -> None:
    command = [sys.executable, "-c", HOLD, *arguments]
    with subprocess.Popen(command, env=clean_environment(), stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            with pytest.raises(
                fds_dist.UserError, match=f"is in use by `fds-dist optimize` of process {process.pid} on"
            ):
                locked(Path("held"), "fds-dist optimize", "KEY").__enter__()
            process.kill()
            process.wait()
            with locked(Path("held"), "fds-dist optimize", "KEY"):
                pass
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def test_a_holder_that_raises_lets_go() -> None:
    with pytest.raises(KeyboardInterrupt), locked(Path("held"), "a", "KEY"):
        raise KeyboardInterrupt
    assert os.listdir("held") == []


# --- file systems that hosts share ---


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "SILENT_SECONDS", 0.4)
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(lock, "SETTLE_SECONDS", 0.05)


@pytest.fixture(params=["local locks", "no locks"])
def shared_disk(request: pytest.FixtureRequest, quick: None, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file system that hosts share, whose locks, if it has any, are those of one mount."""
    monkeypatch.setattr(lock, "OF_ONE_HOST", set[str]())
    if request.param == "no locks":

        def refuse(file: int, operation: int) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", refuse)
    return request.param


def left_by(host: str = "other", boot: str = "1", process: int = 1, name: str = ".lock") -> Path:
    """The lock of a holder that cannot be seen from here."""
    path = Path("held", name)
    path.parent.mkdir()
    path.write_text(to_line(Holder(host, boot, process, "fds-dist retrain", "2026-01-02 03:04:05+00:00")))
    return path


@pytest.mark.parametrize("place", ["another host", "another mount here"])
def test_the_lock_of_a_living_holder_that_the_kernel_does_not_know_is_refused(place: str, shared_disk: str) -> None:
    this = Holder.this_process("a")
    path = left_by() if place == "another host" else left_by("other", this.boot, this.process)
    process, ended = json.loads(path.read_text())["process"], threading.Event()

    def live() -> None:
        while not ended.wait(0.05):
            os.utime(path)

    holder = threading.Thread(target=live)
    holder.start()
    try:
        holder_text = rf"`fds-dist retrain` of process {process} on host other, since 2026-01-02 03:04:05\+00:00"
        expected = f"KEY: held is in use by {holder_text}"
        with pytest.raises(fds_dist.UserError, match=expected):
            locked(Path("held"), "a", "KEY").__enter__()
    finally:
        ended.set()
        holder.join()


@pytest.mark.parametrize("age", [0.0, 3600.0], ids=["seen a moment ago", "seen an hour ago"])
def test_the_lock_of_a_holder_that_was_lost_with_its_host_is_taken_over(shared_disk: str, age: float) -> None:
    path = left_by()
    os.utime(path, (time.time() - age, time.time() - age))
    began = time.monotonic()
    with locked(Path("held"), "a", "KEY"):
        assert json.loads(path.read_text())["process"] == os.getpid()
    assert age or time.monotonic() - began >= 0.4  # it was watched


def test_a_data_set_that_another_host_downloads_is_waited_for(
    shared_disk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "SILENT_SECONDS", 4.0)  # a busy machine may stop the thread for a second
    path, data = left_by(name=".some.lock"), Path("held/data")

    def download() -> None:
        for _ in range(30):
            os.utime(path)
            time.sleep(0.05)
        data.write_text("all of it")
        path.unlink()

    other = threading.Thread(target=download)
    other.start()
    download_once(Path("held"), "some", data.exists, lambda folder: pytest.fail("it was fetched twice"))
    other.join()
    assert data.read_text() == "all of it"
    assert os.listdir("held") == ["data"]


def test_without_locks_a_dead_process_of_this_host_is_known(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSYS, "not implemented")))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    this = Holder.this_process("a")
    left_by(this.host, this.boot, ended.pid)
    with locked(Path("held"), "a", "KEY"):
        assert refused(lambda: locked(Path("held"), "b", "KEY").__enter__()).startswith("KEY: held is in use by `a` of")


def test_the_holder_shows_signs_of_life(quick: None) -> None:
    with locked(Path("held"), "a", "KEY"):
        path = Path("held/.lock")
        os.utime(path, (1, 1))
        wait_for(lambda: path.stat().st_mtime > 1)


# --- two processes ---

LONG = ["inner.epochs=30", "outer.steps=4"]
COMMANDS: dict[str, list[str]] = {
    "optimize": ["optimize", "run.yaml", "name=run", *LONG],
    "resume": ["optimize", "--resume", "runs/begun", "outer.steps=4"],
    "retrain": ["retrain", "runs/begun", "epochs=100"],
    "compare": ["compare", "study.yaml", "inner.epochs=20"],
}
PAIRS = [
    *(("optimize", "optimize"), ("optimize", "resume"), ("resume", "resume")),
    *(("resume", "retrain"), ("retrain", "retrain"), ("compare", "compare")),
]


def start(command: Sequence[str]) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "fds_dist", *command]
    return subprocess.Popen(line, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0, 4], ids=["at once", "seconds apart"])
@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_of_two_processes_one_is_refused_or_they_do_no_harm(pair: tuple[str, str], seconds: float) -> None:
    Path("run.yaml").write_text(yaml.safe_dump(CONFIG))
    Path("study.yaml").write_text(yaml.safe_dump(STUDY))
    optimize("name=begun", "outer.steps=1", "inner.epochs=30")
    first = start(COMMANDS[pair[0]])
    time.sleep(seconds)
    second = start(COMMANDS[pair[1]])
    ends = [(process.communicate()[1], process.returncode) for process in (first, second)]
    assert 0 in [status for _, status in ends], ends
    for message, status in ends:
        assert (status, message) == (0, "") or (status == 2 and " is in use by `" in message), message
        assert message.count("\n") <= 1, message
    for path in Path("runs").rglob("*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            for measured in ("seconds", "rank_seconds", "rank_peak_bytes"):
                line.pop(measured, None)
        assert max(Counter(map(json.dumps, lines)).values()) == 1, path
    print(pair, seconds, [status for _, status in ends])
