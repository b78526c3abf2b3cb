"""The threads of process groups end with the run: one that outlives the interpreter may abort the process."""

from __future__ import annotations

import importlib
import json
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from launching import clean_environment, start_ranks

from fds_dist.distributed.environment import read_environment
from fds_dist.distributed.mesh import MeshShape, Ranks

CPU = torch.device("cpu")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted where Linux lists them")
@pytest.mark.parametrize(
    "holder",
    [
        pytest.param("default arguments", marks=pytest.mark.slow),  # as below, with a group of the run's own
        *("default arguments, the caller's group", "data axis", "cycle", "error"),
    ],
)
def test_no_thread_of_a_process_group_outlives_its_run(holder: str, tmp_path: Path) -> None:
    # A fork has imported the module whose default arguments are meant: a new interpreter has not.
    changes = {"PYTHON_ANEW": "1"} if holder.startswith("default") else {}
    ended = start_ranks([__file__, holder], 2, [tmp_path], clean_environment(**changes))
    assert [(rank.status, rank.err) for rank in ended] == [(0, "")] * 2
    for rank in ended:
        during, after = json.loads(rank.out)
        assert during  # or the names of these threads have changed
        assert not after


def threads() -> list[str]:
    """The names of this process's threads that a process group has started."""
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    return [name for name in names if "gloo" in name]


def program(holder: str) -> None:
    held: list[object] = []
    during: list[str] = []
    of_caller = holder.endswith("the caller's group")
    if of_caller:
        dist.init_process_group("gloo")
    with suppress(ZeroDivisionError), Ranks(read_environment(), MeshShape(1, 1, 2), CPU) as ranks:
        assert ranks.data.sum(torch.ones(2)).tolist() == [2.0, 2.0]
        if holder.startswith("default arguments"):
            importlib.import_module("torch.distributed.nn.functional")
        if holder == "data axis":
            held.append(ranks.data)
        if holder == "cycle":
            cycle: list[object] = [ranks.group]
            cycle.append(cycle)
            del cycle
        during = threads()
        if holder == "error":  # whose traceback holds what was under way
            held.append(ranks.data.send_gather(torch.ones(2), 4))
            held.append(1 / 0)
    if of_caller:
        dist.destroy_process_group()
    sys.stdout.write(json.dumps([during, threads()]))


if __name__ == "__main__":
    program(sys.argv[1])
