"""How much memory is free: of the host, within the limits of a batch system or a container."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fds_dist.common import memory

CPU = torch.device("cpu")
GIB = 2**30


class Files:
    """Files by their whole path, in place of those of the system."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, texts: dict[str, str]) -> None:
        def read_text(path: Path, *_: Any, **__: Any) -> str:
            if str(path) not in texts:
                raise FileNotFoundError(path)
            return texts[str(path)]

        monkeypatch.setattr(Path, "read_text", read_text)
        monkeypatch.setattr(Path, "exists", lambda path: str(path) in texts)


HOST = {"/proc/meminfo": f"MemTotal: {16 * 2**20} kB\nMemAvailable:   {8 * 2**20} kB\n"}
JOB = "/sys/fs/cgroup/slurm/job"
LIMITED = {
    "/proc/self/cgroup": "0::/slurm/job/step\n",
    # The step has no limit of its own, the job has one.
    f"{JOB}/step/memory.max": "max\n",
    f"{JOB}/step/memory.current": "1\n",
    f"{JOB}/step/memory.stat": "inactive_file 0\n",
    f"{JOB}/memory.max": f"{4 * GIB}\n",
    f"{JOB}/memory.current": f"{3 * GIB}\n",
    f"{JOB}/memory.stat": f"anon 5\ninactive_file {GIB}\n",
}
OLDER = {
    "/proc/self/cgroup": "4:cpu,memory:/job\n0::/\n",
    "/sys/fs/cgroup/memory/job/memory.limit_in_bytes": f"{4 * GIB}",
    "/sys/fs/cgroup/memory/job/memory.usage_in_bytes": f"{3 * GIB}",
    "/sys/fs/cgroup/memory/job/memory.stat": f"total_inactive_file {GIB}\n",
    # In a container the root may be all that is there, under a name of the host's.
    "/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
    "/sys/fs/cgroup/memory/memory.usage_in_bytes": "0",
    "/sys/fs/cgroup/memory/memory.stat": "total_inactive_file 0\n",
}


@pytest.mark.parametrize(
    ("files", "expected"),
    [(HOST, 8), (HOST | LIMITED, 2), (HOST | OLDER, 2), ({**LIMITED, **HOST, f"{JOB}/memory.max": "max"}, 8)],
    ids=["host", "control groups", "control groups of version 1", "no limit"],
)
def test_the_narrowest_limit_counts(monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int) -> None:
    Files(monkeypatch, files)
    assert memory.free_bytes(CPU) == expected * GIB
    assert memory.free_bytes(CPU, processes=4) == expected * GIB // 4


def test_a_system_that_does_not_say_has_all_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    Files(monkeypatch, {})
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}.__getitem__)
    assert memory.free_bytes(CPU) == 4096 * 1000


def test_of_a_gpu_it_is_what_is_free_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5 * GIB, 80 * GIB))
    assert memory.free_bytes(torch.device("cuda", 0), processes=8) == 5 * GIB


def test_this_host_has_some() -> None:
    assert 0 < memory.free_bytes(CPU) < 2**50
