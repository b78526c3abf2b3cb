"""Two hosts: network namespaces of this machine, each with an address of its own and a cable between them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from launch_scripts import (
    LAUNCH,
    let_go,
    result_of,
    script_environment,
    started,
    uninterrupted,
    wait_for_ranks,
    wait_until,
    write_config,
)
from launching import PATIENCE

import fds_dist

pytestmark = [pytest.mark.root, pytest.mark.slow]

ENDPOINT = "10.77.0.1:29400"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """The names of two namespaces, 10.77.0.1 and 10.77.0.2."""
    if shutil.which("ip") is None:
        pytest.skip("there is no ip (iproute2)")
    names = [f"fds-{os.getpid()}-{number}" for number in (1, 2)]
    with ExitStack() as stack:
        for name in names:
            try:
                ip("netns", "add", name)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"no network namespaces: {error.stderr.strip()}")
            stack.callback(ip, "netns", "delete", name)
        ip("-n", names[0], "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", names[1])
        for number, name in enumerate(names, start=1):
            ip("-n", name, "address", "add", f"10.77.0.{number}/30", "dev", "cable")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", "cable", "up")
        yield names


def launch_on(
    stack: ExitStack, hosts: list[str], folder: Path, per_host: int, restarts: int = 0, overrides: Sequence[str] = ()
) -> list[subprocess.Popen[bytes]]:
    """The same line on each host; nothing is said about interfaces, nor about the hosts' own addresses."""
    settings = {"NNODES": "2", "ENDPOINT": ENDPOINT, "NPROC": str(per_host), "MAX_RESTARTS": str(restarts)}
    environment = script_environment(**settings)
    line = [str(LAUNCH / "multi_node.sh"), "optimize", "config.yaml", "name=run", *overrides]
    return [
        stack.enter_context(started(["ip", "netns", "exec", host, *line], folder, folder / f"log-{host}", environment))
        for host in hosts
    ]


def said(folder: Path) -> str:
    return "\n".join(f"{log.name}\n{log.read_text()}" for log in sorted(folder.glob("log-*")))


@pytest.mark.parametrize("per_host", [1, 2])
def test_two_hosts_give_the_bits_of_one(hosts: list[str], per_host: int, tmp_path: Path) -> None:
    write_config(tmp_path)
    let_go(tmp_path)
    with ExitStack() as stack:
        statuses = [launcher.wait(PATIENCE) for launcher in launch_on(stack, hosts, tmp_path, per_host)]
    assert statuses == [0, 0], said(tmp_path)
    line = [LAUNCH / "single_node.sh", "optimize", "config.yaml", "name=one-host"]
    one_host = script_environment(NPROC=str(2 * per_host))
    subprocess.run(line, cwd=tmp_path, env=one_host, check=True, capture_output=True, timeout=PATIENCE)
    found = result_of(tmp_path / "runs" / "run")
    assert found == result_of(tmp_path / "runs" / "one-host")
    assert found == uninterrupted(tmp_path)
    assert f"{2 * per_host} ranks" in said(tmp_path)


@pytest.mark.parametrize("whole", [False, True], ids=["launcher", "host"])
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_host_ends_the_other_and_one_host_goes_on(
    hosts: list[str], lost: int, whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The launcher alone is killed, whose ranks must not outlive it, or all processes of its host, on either host."""
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path)
    with ExitStack() as stack:
        launchers = launch_on(stack, hosts, tmp_path, per_host=2)
        ranks = wait_for_ranks(tmp_path, 4, launchers)
        gone = [2, 3] if lost else [0, 1]
        for process in [launchers[lost].pid, *([ranks[rank] for rank in gone] if whole else [])]:
            os.kill(process, signal.SIGKILL)
        let_go(tmp_path)
        status = launchers[1 - lost].wait(PATIENCE)
        wait_until(lambda: not any(Path(f"/proc/{rank}").exists() for rank in ranks), "all ranks to end")
    assert status == 1, said(tmp_path)
    log = (tmp_path / f"log-{hosts[1 - lost]}").read_text()
    several = f"(s {gone[0]}, {gone[1]}| {gone[0]}| {gone[1]})"
    lines = [rf"lost another rank: rank {'[23]' if lost else '[01]'} \(.*\) has ended; see its output"]
    if not whole:
        lines.append(rf"rank{several} ended: the launcher on {re.escape(socket.gethostname())} has ended")
    if lost == 0:  # with the meeting place; its loss may end the launcher before a rank notices
        lines.append("the node where all nodes meet cannot be reached, or no longer: ")
    assert any(re.search(f"^fds-dist: {line}", log, re.MULTILINE) for line in lines), log
    assert "interrupted" not in log, log
    result = fds_dist.optimize(resume="runs/run", progress=False)
    assert result_of(result.run_dir) == uninterrupted(tmp_path)


def test_a_killed_rank_starts_all_again_on_both_hosts(hosts: list[str], tmp_path: Path) -> None:
    write_config(tmp_path)
    with ExitStack() as stack:
        launchers = launch_on(stack, hosts, tmp_path, per_host=1, restarts=1)
        ranks = wait_for_ranks(tmp_path, 2, launchers)
        os.kill(ranks[1], signal.SIGKILL)
        let_go(tmp_path)
        statuses = [launcher.wait(PATIENCE) for launcher in launchers]
    assert statuses == [0, 0], said(tmp_path)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["run"]
    assert result_of(tmp_path / "runs" / "run") == uninterrupted(tmp_path)


CUTS = {"link down": "link set cable down", "packets lost": "neighbour replace {} lladdr 02:00:00:00:00:99 dev cable"}
"""What `ip` is told on one host, with the other's address; packets that go to nobody's hardware address are lost."""
TIMEOUT = 20.0
IN_TIME = 35.0
"""Seconds beyond the timeout."""


def has_ended(process: int) -> bool:
    """Whether a process has, although its launcher, which waits for the other host, has not asked for its status."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize("end", [0, 1])
@pytest.mark.parametrize("cut", list(CUTS))
def test_a_cut_cable_ends_both_hosts_and_each_names_the_other(
    hosts: list[str], cut: str, end: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No connection closes: each side only hears nothing more. The launchers may wait for each other for minutes."""
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path)
    with ExitStack() as stack:
        launchers = launch_on(stack, hosts, tmp_path, per_host=1, overrides=[f"distributed.timeout={TIMEOUT}"])
        ranks = wait_for_ranks(tmp_path, 2, launchers)
        ip("-n", hosts[end], *CUTS[cut].format(f"10.77.0.{2 - end}").split())
        let_go(tmp_path)
        began = time.monotonic()
        wait_until(lambda: all(map(has_ended, ranks)), "both ranks to end")
        seconds = time.monotonic() - began
        for launcher in launchers:
            launcher.kill()
    assert seconds < TIMEOUT + IN_TIME, said(tmp_path)
    for number, host in enumerate(hosts):
        lines = re.findall("^fds-dist: (.*)", (tmp_path / f"log-{host}").read_text(), re.MULTILINE)
        (line,) = [line for line in lines if not line.startswith(("run folder", "the node"))]
        silent = rf"lost another rank: rank {1 - number} \(.*\) has been silent for \d+ s, its host does not answer; "
        assert re.match(silent, line), said(tmp_path)
    result = fds_dist.optimize(resume="runs/run", progress=False)
    assert result_of(result.run_dir) == uninterrupted(tmp_path)
