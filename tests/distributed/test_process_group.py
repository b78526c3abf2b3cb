"""A process group that the caller has made already. As a program, what each rank runs: `… FOLDER CASE`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from launching import clean_environment, free_port, outcome, start_ranks

from fds_dist.distributed.environment import LaunchEnvironment, read_environment

CONFIG: dict[str, Any] = {
    "task": {"name": "own_tasks:blobs"},
    "inner": {"epochs": 1},
    "hyperparameters": {"lr": {"init": 0.05, "buckets": 2, "step": 0.01}},
    "outer": {"optimizer": "sign", "steps": 1},
    "dtype": "float64",
}
MESHES = {"tangent": {}, "data": {"data": 2}, "replica": {"replica": 2}}


def search(name: str, mesh: dict[str, int]) -> dict[str, Any]:
    return outcome({"config": {**CONFIG, "name": name, "mesh": mesh}})


def total(number: int) -> int:
    """A sum over the caller's own group."""
    tensor = torch.tensor(number)
    dist.all_reduce(tensor)
    return int(tensor)


def program(folder: Path, case: str) -> None:
    """The caller's script."""
    place, size, port = int(os.environ["PLACE"]), int(os.environ["SIZE"]), os.environ["PORT"]
    if case == "small group":  # of this rank alone, where the launcher started two
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    elif case == "fake":
        from torch.testing._internal.distributed.fake_pg import FakeStore

        dist.init_process_group("fake", store=FakeStore(), rank=place, world_size=size)
    else:
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=place, world_size=size)
    ends: dict[str, Any] = {}
    for name, mesh in MESHES.items() if case in ("launched", "spawned") else [("tangent", {})]:
        ends[name] = search(name, mesh)
    if case in ("launched", "spawned"):
        ends["wrong"] = outcome({"config": {**CONFIG, "seed": "x"}})
        ends["total"] = total(place + 1)
        ends["place"] = vars(read_environment())
        dist.destroy_process_group()
        if case == "launched":
            ends["after"] = search("after", {})  # in a group of its own
            ends["initialized"] = dist.is_initialized()
    (folder / f"{case}-{place}.json").write_text(json.dumps(ends))


def ended(folder: Path, case: str, launched: bool, size: int = 2) -> list[dict[str, Any]]:
    """What each rank's script wrote."""
    port = str(free_port())
    code = "import os, runpy, sys; os.environ['PLACE'] = os.environ.get('RANK', os.environ.get('PLACE', '0'))"
    if not launched:  # processes that the caller started by itself
        code += "; [os.environ.pop(name, None) for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'LOCAL_WORLD_SIZE')]"
    code += f"; sys.argv = ['', {str(folder)!r}, {case!r}]; runpy.run_path({__file__!r}, run_name='__main__')"
    ranks = start_ranks(["-c", code], size, [folder], clean_environment(PORT=port, SIZE=str(size)))
    assert [(rank.status, rank.err) for rank in ranks] == [(0, "")] * size
    return [json.loads((folder / f"{case}-{place}.json").read_text()) for place in range(size)]


def record(folder: Path, name: str) -> dict[str, Any]:
    (line,) = (folder / "runs" / name / "history.jsonl").read_text().splitlines()
    return json.loads(line)


@pytest.mark.parametrize("launched", [True, False], ids=["launched", "spawned"])
def test_the_group_of_the_caller_is_joined_and_left_as_it_was(launched: bool, tmp_path: Path) -> None:
    first, second = ended(tmp_path, "launched" if launched else "spawned", launched)
    places = [end.pop("place") for end in (first, second)]
    assert first == second
    assert first["total"] == 3  # the group is there, and works
    assert [(place["rank"], place["world_size"], place["has_group"]) for place in places] == [
        (0, 2, True),
        (1, 2, True),
    ]
    assert [(place["local_rank"], place["local_world_size"]) for place in places] == [(0, 2), (1, 2)]
    assert first["wrong"]["raised"] == "UserError"
    assert [first[name]["run_dir"] for name in MESHES] == [f"runs/{name}" for name in MESHES]
    tangent, data, replica = (record(tmp_path, name) for name in MESHES)
    assert {entry["world_size"] for entry in (tangent, data, replica)} == {2}
    # Sums over two parts of a batch round differently: 1e-16 each, through 4 steps.
    assert data["hypergradients"]["lr"] == pytest.approx(tangent["hypergradients"]["lr"], rel=1e-12)
    assert replica["hypergradients"] != tangent["hypergradients"]
    if launched:
        assert first["after"]["schedule"] == first["tangent"]["schedule"]
        assert record(tmp_path, "after")["hypergradients"] == tangent["hypergradients"]
        assert first["initialized"] is False


@pytest.mark.parametrize(
    ("case", "line"),
    [
        ("small group", "process group: the one that exists has 1 of 2 ranks"),
        ("fake", "process group: the one that exists has the backend fake, which has no store"),
    ],
)
def test_a_group_that_cannot_be_used_is_refused(case: str, line: str, tmp_path: Path) -> None:
    for end in ended(tmp_path, case, launched=True):
        assert end["tangent"]["raised"] == "UserError"
        assert end["tangent"]["message"].startswith(line)
    assert not (tmp_path / "runs").exists()


def test_a_group_of_one_rank_is_no_group() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        assert read_environment() == LaunchEnvironment()
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    program(Path(sys.argv[1]), sys.argv[2])
