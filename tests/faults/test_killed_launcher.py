"""A launcher that is killed right after it started its ranks leaves none of them behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from launch_scripts import LAUNCH, script_environment, wait_until, write_config

from fds_dist.distributed.parent import is_orphan
from fds_dist.distributed.processes import has_ended, identity, name_space, parent

LEFT_ALONE = 10.0
"""Seconds after which no rank is left. Two of them do nothing but end here."""
DELAYS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.3, 1.0)
RANKS = 2
LAUNCHERS = {
    "script": [str(LAUNCH / "single_node.sh")],
    "torchrun": [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "fds_dist",
    ],
}


def children(process: int) -> list[int]:
    """The processes that `process` has started, and that are there."""
    numbers = (int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal())
    return [number for number in numbers if parent(number) == process]


def is_alive(identities: dict[int, str]) -> list[int]:
    """Those of these processes that are still there."""
    return [number for number, its_identity in identities.items() if not has_ended(number, its_identity)]


def ranks_left(command: Sequence[str], folder: Path, delay: float) -> list[int]:
    """The ranks that are there `LEFT_ALONE` after the launcher was killed, `delay` after its first rank began."""
    ranks: dict[int, str] = {}
    launcher = subprocess.Popen(
        [*command, "optimize", "config.yaml"],
        cwd=folder,
        env=script_environment(NPROC=str(RANKS)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

    def look() -> bool:
        ranks.update({number: identity(number) for number in children(launcher.pid) if number not in ranks})
        return bool(ranks)

    try:
        while not look():
            assert launcher.poll() is None
            time.sleep(0.001)
        until = time.monotonic() + delay
        while time.monotonic() < until:
            look()
        look()
        launcher.kill()
        launcher.wait()
        deadline = time.monotonic() + LEFT_ALONE
        while (left := is_alive(ranks)) and time.monotonic() < deadline:
            time.sleep(0.1)
        return left
    finally:
        launcher.kill()
        launcher.wait()
        for number in is_alive(ranks):
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)


@pytest.mark.parametrize("delay", [0.0, 0.05])
def test_no_rank_outlives_its_launcher(delay: float, tmp_path: Path) -> None:
    write_config(tmp_path)
    assert ranks_left(LAUNCHERS["script"], tmp_path, delay) == []


@pytest.mark.slow
@pytest.mark.parametrize("delay", DELAYS)
@pytest.mark.parametrize("launcher", list(LAUNCHERS))
def test_no_rank_outlives_its_launcher_ten_times(launcher: str, delay: float, tmp_path: Path) -> None:
    write_config(tmp_path)
    assert [ranks_left(LAUNCHERS[launcher], tmp_path, delay) for _ in range(10)] == [[]] * 10


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()


def test_an_orphan_knows_it(sleeper: subprocess.Popen[bytes]) -> None:
    launcher = f"{name_space()} {identity(sleeper.pid)}"
    assert not is_orphan(sleeper.pid, launcher)
    assert not is_orphan(os.getpid(), launcher)  # a process between the two
    assert not is_orphan(sleeper.pid, "")
    assert not is_orphan(sleeper.pid, launcher.replace(name_space(), "pid:[1]"))  # of an outer launch, elsewhere
    sleeper.kill()
    wait_until(lambda: is_orphan(os.getpid(), launcher), "the end of the launcher")
