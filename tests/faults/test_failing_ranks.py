"""One rank alone sees NaN, fails or lacks memory: all ranks decide alike, or end with a line that names it and why."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from failing_ranks import ALL, QUICK, config
from launching import SUPPORT, start_ranks

from fds_dist.commands import FAILED


def check(folder: Path, names: Sequence[str]) -> None:
    """Runs the cases on two ranks, and checks how each of them ended."""
    ended = start_ranks([str(SUPPORT / "failing_ranks.py"), str(folder), *names], 2, [folder])
    assert [rank.status for rank in ended] == [0, 0], ended
    ends = [json.loads((folder / f"ends-{rank}.json").read_text()) for rank in range(2)]
    for name in names:
        case, failing = ALL[name]
        own, other = ends[failing][name], ends[1 - failing][name]
        if not case.cause:
            assert own["raised"] == other["raised"] == "", (name, own, other)
            assert own["message"] == other["message"], name
            continue
        assert own["raised"], name
        assert case.cause in f"{own['raised']}: {own['message']}", (name, own)
        assert case.cause in other["message"], (name, other)
        assert f"rank {failing}" in other["message"], (name, other)
        assert "lost another rank" not in other["message"], (name, other)
        assert len(other["message"].splitlines()) == 1, (name, other)
        if case.cause == "out of memory":
            assert own["message"] == other["message"], (name, own, other)
            assert other["message"].startswith(f"rank {failing} ended: out of memory ("), (name, other)
            assert "llocate" in other["message"], (name, other)
            for way_out in ("tangents.chunk_size", "mesh.data", "fds-dist check"):
                assert way_out in other["message"], (name, other)


def test_what_one_rank_meets_alone_ends_alike_on_both(tmp_path: Path) -> None:
    check(tmp_path, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(6))
def test_all_that_one_rank_may_meet_alone(tmp_path: Path, part: int) -> None:
    check(tmp_path, list(ALL)[part::6])


def test_the_command_tells_of_a_rank_without_memory_in_one_line(tmp_path: Path) -> None:
    content = config(task={"name": "failing_ranks:starved"}, name="run")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    first, second = start_ranks(["-m", "fds_dist", "optimize", "config.yaml"], 2, [tmp_path])
    assert (first.status, second.status) == (FAILED, FAILED)
    assert second.err == ""
    (line,) = first.err.splitlines()
    assert line.startswith("fds-dist: rank 1 ended: out of memory (CUDA out of memory. Tried to allocate 2.00 GiB.);")
