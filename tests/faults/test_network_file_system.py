"""Two hosts that share a folder over a network file system: two mounts of it on this host, each with its own caches."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import launch_scripts
import pytest
import yaml
from launching import PATIENCE, Ended, clean_environment, start_ranks, wait_for
from lost_ranks import background, left_waiting, write_config
from network_mounts import Mount, lacking, mounted

pytestmark = [pytest.mark.root, pytest.mark.skipif(lacking() != "", reason=lacking())]

TIMEOUT = 60.0
"""Nobody waits for it where a process ends, which closes its connections."""
SHORT, IN_TIME = 20.0, 35.0
"""A timeout that is waited for, and the seconds beyond it within which ranks end."""
MESHES: dict[str, dict[str, Any]] = {
    "forward": {},
    "replica": {"mesh": {"replica": 2}},
    "data": {"mesh": {"data": 2}},
    "reverse": {"estimator": "reverse", "mesh": {"data": 2}},
}
BATCHES = {
    "forward": range(8, 50, 5),
    "replica": range(10, 50, 6),
    "data": range(12, 48, 7),
    "reverse": range(20, 93, 9),
}
"""Before which of the batches that a rank reads it is killed, from the checks before the first outer step on."""
CASES = [(mesh, batch) for mesh, batches in BATCHES.items() for batch in batches]


@pytest.fixture
def views(tmp_path: Path) -> Iterator[list[Path]]:
    """Two hosts' paths of the folder `tmp_path/export`."""
    with mounted(tmp_path / "export", tmp_path / "one", tmp_path / "other") as mounts:
        yield [mount.path for mount in mounts]


# --- the lock ---

HOLD = """
import sys, time
from pathlib import Path
from fds_dist.common.faults import UserError
from fds_dist.storage.lock import locked
try:
    with locked(Path("held"), "fds-dist optimize", "KEY"):
        print("holds it", flush=True)
        sys.stdin.read()
except UserError as error:
    print(error, flush=True)
"""
ANOTHER_HOST = ["unshare", "--pid", "--fork", "--kill-child"]
"""Begins what sees no process of this one."""


class Holding:
    """A process that asks for the lock of the folder `held`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def answer(self) -> str:
        """What has become of that."""
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def kill(self) -> None:
        self.process.kill()  # a new set of process numbers ends with its first, by --kill-child
        self.process.wait()


@contextmanager
def holding(view: Path, is_another_host: bool = False) -> Iterator[Holding]:
    command = [*(ANOTHER_HOST if is_another_host else []), sys.executable, "-c", HOLD]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=view, env=clean_environment(), **pipes) as process:
        try:
            yield Holding(process)
        finally:
            process.kill()


@pytest.mark.parametrize("is_another_host", [False, True], ids=["a host's two mounts", "two hosts"])
def test_the_lock_holds_on_both_mounts_until_its_holder_is_killed(is_another_host: bool, views: list[Path]) -> None:
    """The kernel has a lock for each mount, and gives it to both."""
    with ExitStack() as stack:
        holder = stack.enter_context(holding(views[0], is_another_host))
        assert holder.answer() == "holds it\n"
        for view in views:
            assert "KEY: held is in use by `fds-dist optimize` of " in stack.enter_context(holding(view)).answer()
        holder.kill()
        assert stack.enter_context(holding(views[1])).answer() == "holds it\n"
        assert " is in use by " in stack.enter_context(holding(views[0])).answer()


def test_of_two_that_come_at_once_one_holds_the_lock(views: list[Path]) -> None:
    for _ in range(3):
        with ExitStack() as stack:
            both = [stack.enter_context(holding(view)) for view in views]
            answers = [process.answer() for process in both]
            assert answers.count("holds it\n") == 1, answers


def test_who_lets_go_of_the_lock_leaves_it_to_the_other(views: list[Path]) -> None:
    """Who is late to see that the lock's file is gone waits for that."""
    for view in (*views, *views):
        with holding(view) as process:
            assert process.answer() == "holds it\n"
            process.process.communicate()
    assert list((views[0].parent / "export" / "held").iterdir()) == []


# --- a search ---

Numbers = list[tuple[Any, ...]]


def search(folders: list[Path], *line: str) -> tuple[str, Numbers]:
    """What a search on two ranks says and computes that nobody disturbs."""
    ended = start_ranks(["-m", "fds_dist", "optimize", *line], 2, folders)
    assert [(rank.status, rank.err) for rank in ended] == [(0, "")] * 2
    assert "no more checkpoints" not in ended[0].out
    lines = map(json.loads, (folders[0] / "runs" / "run" / "history.jsonl").read_text().splitlines())
    return ended[0].out, [(line["hyperparameters"], line["hypergradients"], line["val_loss"]) for line in lines]


def write(folder: Path, mesh: str) -> None:
    """A search that saves within an outer step as often as it can."""
    write_config(folder, TIMEOUT, **MESHES[mesh], checkpoint={"every_seconds": 1e-9})


def killed_and_resumed(mesh: str, batch: int, victim: int, views: list[Path], alone: Path) -> None:
    alone.mkdir()
    write(alone, mesh)
    write(export := views[0].parent / "export", mesh)
    command = ["optimize", "config.yaml"]
    ((left, end),) = left_waiting(export, 2, command, victim, "SIGKILL", f"batch-{batch}", views).items()
    assert (left, end.status, len(end.lines)) == (1 - victim, 1, 1), end.err
    assert end.err.startswith(f"fds-dist: lost another rank: rank {victim} ("), end.err
    assert "no more checkpoints" not in end.out
    saved = list(export.glob("runs/run/checkpoints/inner*/manifest.json"))
    line = ["--resume", "runs/run"] if (export / "runs" / "run").exists() else ["config.yaml"]  # else it had not begun
    said, numbers = search(views[::-1], *line)  # the ranks have changed hosts
    assert numbers == search([alone], "config.yaml")[1]
    assert ("goes on from inner step" in said) == bool(saved)


def test_a_killed_rank_is_named_and_the_search_goes_on(views: list[Path], tmp_path: Path) -> None:
    killed_and_resumed("forward", 28, 0, views, tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.parametrize(("mesh", "batch"), CASES)
def test_whenever_a_rank_is_killed(mesh: str, batch: int, views: list[Path], tmp_path: Path) -> None:
    killed_and_resumed(mesh, batch, BATCHES[mesh].index(batch) % 2, views, tmp_path / "alone")


def test_all_that_is_done_with_a_run(views: list[Path]) -> None:
    """Each command right after the one before, its ranks on the other hosts."""
    write(views[0].parent / "export", "forward")
    lines = [
        ["optimize", "config.yaml", "outer.steps=1"],
        ["optimize", "--resume", "runs/run", "outer.steps=3"],
        ["retrain", "runs/run", "epochs=1"],
        ["retrain", "runs/run", "epochs=1"],  # which is done already
        ["check", "runs/run"],
        ["noise", "runs/run/config.yaml", "--runs", "4", "--steps", "4"],
    ]
    for number, line in enumerate(lines):
        ended = start_ranks(["-m", "fds_dist", *line], 2, views if number % 2 else views[::-1])
        assert [(rank.status, rank.err) for rank in ended] == [(0, "")] * 2, line
        assert "no more checkpoints" not in ended[0].out
    (report,) = start_ranks(["-m", "fds_dist", "report", "runs/run"], 1, views)
    assert (report.status, report.err) == (0, "")


# --- a file system that goes away or hangs ---


def damaged(
    tmp_path: Path, damage: Callable[[Mount], None], hosts: Sequence[int], seconds: float = 0.0
) -> dict[int, Ended | None]:
    """rank → how each ended whose file system is damaged in the second outer step; None: it waits for that still.

    Args:
        seconds: after which the file system answers again; 0: it never does.
    """
    export, flags = tmp_path / "export", tmp_path / "flags"
    flags.mkdir()
    with mounted(export, tmp_path / "one", tmp_path / "other") as mounts:
        launch_scripts.write_config(flags)
        config = yaml.safe_load((flags / "config.yaml").read_text())
        more = {"name": "run", "distributed": {"timeout": SHORT}, "checkpoint": {"every_seconds": 1e-9}}
        (export / "config.yaml").write_text(yaml.safe_dump(config | more))
        views = [mount.path for mount in mounts]
        with background(["-m", "fds_dist", "optimize", "config.yaml"], 2, export, views) as ranks:
            wait_for(lambda: all((flags / f"here-{rank}").exists() for rank in range(2)))
            for host in hosts:
                damage(mounts[host])
            launch_scripts.let_go(flags)
            until = time.monotonic() + SHORT + IN_TIME
            again = time.monotonic() + (seconds or 2 * PATIENCE)
            while time.monotonic() < until and any(rank.poll() is None for rank in ranks):
                if time.monotonic() > again:
                    mounts[hosts[0]].answer()
                time.sleep(0.1)
            have_ended = [rank.poll() is not None for rank in ranks]
            for host in hosts:  # before that no kill ends a process which waits for the file system
                mounts[host].answer()
            for rank in ranks:
                rank.kill()
            said = [rank.communicate() for rank in ranks]
    ends = [Ended(rank.returncode or 0, *words) for rank, words in zip(ranks, said, strict=True)]
    return {number: end if have_ended[number] else None for number, end in enumerate(ends)}


def goes_on(tmp_path: Path) -> None:
    """The search is resumed where the file system is back, and comes to what one comes to that nobody disturbs."""
    with mounted(tmp_path / "export", tmp_path / "back", tmp_path / "also-back") as mounts:
        search([mount.path for mount in mounts], "--resume", "runs/run")
        run = launch_scripts.result_of(tmp_path / "export" / "runs" / "run")
    assert run == launch_scripts.uninterrupted(tmp_path / "flags")


@pytest.mark.parametrize("hosts", [[0], [0, 1]], ids=["the first rank's", "both ranks'"])
def test_a_file_system_that_is_gone_is_one_line(hosts: list[int], tmp_path: Path) -> None:
    ends = damaged(tmp_path, Mount.lose, hosts)
    assert [end and end.status for end in ends.values()] == [1, 1], ends
    lines = [line for end in ends.values() if end for line in end.err.splitlines()]
    assert len(lines) == 1, lines  # both ranks are of one node, whose first rank speaks
    assert re.match(r"fds-dist: cannot (reach|write) runs/run\S*: Transport endpoint is not connected", lines[0])
    goes_on(tmp_path)


def test_a_rank_without_its_file_system_trains_on(tmp_path: Path) -> None:
    """The first rank writes the results; only the other's part of checkpoints is missing, with a note."""
    ends = damaged(tmp_path, Mount.lose, [1])
    assert [end and (end.status, end.err) for end in ends.values()] == [(0, "")] * 2, ends
    assert ends[0] is not None and "no more checkpoints within this outer step: cannot write " in ends[0].out
    assert launch_scripts.result_of(tmp_path / "export" / "runs" / "run") == launch_scripts.uninterrupted(
        tmp_path / "flags"
    )


@pytest.mark.parametrize("host", [0, 1])
def test_a_file_system_that_hangs_for_a_while_is_waited_for(host: int, tmp_path: Path) -> None:
    ends = damaged(tmp_path, Mount.hang, [host], seconds=SHORT / 3)
    assert [end and (end.status, end.err) for end in ends.values()] == [(0, "")] * 2, ends
    assert launch_scripts.result_of(tmp_path / "export" / "runs" / "run") == launch_scripts.uninterrupted(
        tmp_path / "flags"
    )


@pytest.mark.parametrize("host", [0, 1])
def test_a_file_system_that_hangs_ends_the_other_rank(host: int, tmp_path: Path) -> None:
    """The rank itself waits in the kernel, where not even a kill ends it before the file system answers or is gone."""
    ends = damaged(tmp_path, Mount.hang, [host])
    left = ends[1 - host]
    assert left is not None and left.status == 1, ends
    (line,) = left.err.splitlines()
    named = rf"lost another rank: rank {host} \(.*\) has been busy\S*( at \S+)? for \d+ s, while others waited for it"
    assert re.match(f"fds-dist: {named}", line), line
    goes_on(tmp_path)
