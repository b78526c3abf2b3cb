"""Two ranks that share a GPU, as if each was on a host of its own: NCCL would refuse, and nothing here needs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from gpu_cases import DEVICE
from launching import start_ranks

pytestmark = pytest.mark.gpu

AS_TWO_HOSTS = """
import os, sys
os.environ.update(LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
from fds_dist.cli import main
sys.exit(main(sys.argv[1:]))
"""
FLOAT64 = 1e-9
"""Relative: chunks of other sizes round differently."""


def ended(folder: Path, world_size: int, **sections: Any) -> list[tuple[int, str, str]]:
    content = {
        "task": {"name": "own_tasks:blobs"},
        "inner": {"epochs": 2},
        "hyperparameters": {"lr": {"init": 0.05, "step": 0.02, "buckets": 3}, "momentum": {"init": 0.5, "step": 0.1}},
        "outer": {"optimizer": "sign", "steps": 2, "tolerance": 1e-9},
        "consistency": {"every": 2},
        "dtype": "float64",
        "device": DEVICE.type,
        "name": "run",
        **sections,
    }
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    ranks = start_ranks(["-c", AS_TWO_HOSTS, "optimize", "config.yaml"], world_size, [folder])
    return [(rank.status, rank.out, rank.err) for rank in ranks]


def hypergradients(folder: Path) -> list[float]:
    lines = (folder / "runs/run/history.jsonl").read_text().splitlines()
    return [number for line in lines for row in json.loads(line)["hypergradients"].values() for number in row]


def test_two_ranks_find_what_one_finds(tmp_path: Path) -> None:
    for world_size in (1, 2):
        assert [rank[0] for rank in ended(tmp_path / str(world_size), world_size)] == [0] * world_size
    alone, together = (hypergradients(tmp_path / str(world_size)) for world_size in (1, 2))
    assert together == pytest.approx(alone, rel=FLOAT64)


def test_a_lost_rank_ends_the_other_with_one_line(tmp_path: Path) -> None:
    first, second = ended(tmp_path / "run", 2, task={"name": "own_tasks:Dying"})
    assert "planted" in second[2]
    assert first[0] == 1
    lines = [line for line in first[2].splitlines() if line.startswith("fds-dist:")]
    assert len(lines) == 1
    assert "lost another rank" in lines[0]
    assert "Traceback" not in first[2]
