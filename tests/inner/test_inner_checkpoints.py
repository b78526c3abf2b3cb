"""Inner runs that are cut off go on where they were kept. As a program, what each of four ranks does: `… FOLDER`."""

from __future__ import annotations

import json
import math
import resource
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import start_ranks
from problems import CPU, ONE_RANK, flat, go_on, image_task, make_problem, mlp, one_conv_bn, relative_error
from selection import slow_unless, wanted
from torch import Tensor

import fds_dist
from fds_dist.distributed.environment import read_environment
from fds_dist.distributed.mesh import MeshShape, Ranks
from fds_dist.inner.checkpoints import InnerCheckpoints
from fds_dist.inner.estimators import estimate_forward
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerRun, InnerState
from fds_dist.tangents.optimizers import Adam
from fds_dist.tangents.optimizers.schedule_free import ScheduleFree

HORIZON, CUT = 7, 4
RUN = {"seed": 0}
SHAPES = {"1x4x1": MeshShape(1, 4, 1), "1x2x2": MeshShape(1, 2, 2), "1x1x4": MeshShape(1, 1, 4)}
SGD_BUCKETS = {"lr": [0.2, 0.1, 0.3], "momentum": [0.5, 0.8], "weight_decay": [0.02]}
ADAM_BUCKETS = {"lr": [0.02, 0.01], "beta1": [0.8], "weight_decay": [0.1, 0.05]}
ROUNDING = 1e-12
"""Sums over parts of a batch round differently: 1e-16 each, through 7 steps whose errors grow a little each."""


def cases() -> dict[str, tuple[Problem, list[float]]]:
    """Running statistics that the validation reads, and an optimizer whose state has a single number."""
    norm = make_problem(image_task(one_conv_bn), SGD_BUCKETS, val_batch_norm="running")
    adam = make_problem(image_task(mlp), ADAM_BUCKETS, optimizer=Adam(decoupled=True))
    averaged = replace(adam, ema=0.9)
    return {
        "sgd": (norm, flat(SGD_BUCKETS)),
        "adamw": (adam, flat(ADAM_BUCKETS)),
        "averaged": (averaged, flat(ADAM_BUCKETS)),
        "schedule-free": (replace(adam, optimizer=ScheduleFree(adaptive=True)), flat(ADAM_BUCKETS)),
    }


def keeper(
    folder: Path, ranks: Ranks, notes: list[str], seconds: float = math.inf, run: dict[str, Any] = RUN
) -> InnerCheckpoints:
    """One that keeps nothing more, or with 0 seconds every step, and the last two of them."""
    return InnerCheckpoints(folder, run, HORIZON, ranks, seconds, count=2, meeting=1, note=notes.append)


def cut_off(name: str, folder: Path, ranks: Ranks) -> None:
    """Runs until step CUT, which is not kept any more."""
    problem, values = cases()[name]

    def until(state: InnerState, loss: Tensor) -> bool:
        return state.step < CUT

    estimate_forward(InnerRun(problem, values, 0, HORIZON, ranks, until, keeper(folder, ranks, [], seconds=0.0)))


def gone_on(name: str, folder: Path, ranks: Ranks, run: dict[str, Any] = RUN) -> tuple[list[float], list[str], int]:
    """Hypergradients, notes, and how many steps it took."""
    (problem, values), notes, steps = cases()[name], list[str](), list[int]()

    def count(state: InnerState, loss: Tensor) -> bool:
        steps.append(state.step)
        return True

    estimate = estimate_forward(
        InnerRun(problem, values, 0, HORIZON, ranks, count, keeper(folder, ranks, notes, run=run))
    )
    return estimate.hypergradients, notes, len(steps)


def whole(name: str, ranks: Ranks) -> list[float]:
    problem, values = cases()[name]
    return estimate_forward(InnerRun(problem, values, 0, HORIZON, ranks)).hypergradients


def kept(mesh: str, name: str) -> bool:
    """Whether CI has a case on a mesh: each on 1x2x2, which shares out tangents and batches, and one on the others."""
    return mesh == "1x2x2" or name == "sgd"


def four_ranks(folder: Path) -> None:
    """Goes on from what one rank left in FOLDER/NAME/alone, and leaves its own in FOLDER/NAME/SHAPE for one rank."""
    environment, found = read_environment(), dict[str, Any]()
    asked = json.loads((folder / "wanted.json").read_text())
    for mesh, shape in SHAPES.items():
        with Ranks(environment, shape, CPU) as ranks:
            for name in (name for name in cases() if [mesh, name] in asked):
                cut_off(name, folder / name / mesh, ranks)
                found[f"{mesh} {name}"] = {
                    "whole": whole(name, ranks),
                    "own": gone_on(name, folder / name / mesh, ranks),
                    "alone": gone_on(name, folder / name / "alone", ranks),
                }
    if environment.rank == 0:
        (folder / "found.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inner")
    (path / "wanted.json").write_text(json.dumps(wanted(request, "mesh", "name")))
    for name in cases():
        cut_off(name, path / name / "alone", ONE_RANK)
    ended = start_ranks([__file__, str(path)], 4, [path])
    assert [(rank.status, rank.err) for rank in ended] == [(0, "")] * 4
    return path


@pytest.mark.parametrize(("mesh", "name"), slow_unless(kept, product(SHAPES, cases())))
def test_other_ranks_go_on_to_what_an_uninterrupted_run_gives(folder: Path, mesh: str, name: str) -> None:
    found = json.loads((folder / "found.json").read_text())[f"{mesh} {name}"]
    hypergradients, notes, steps = found["own"]
    assert hypergradients == found["whole"]  # the same bits
    assert (notes, steps) == ([f"goes on from inner step {CUT - 1} of {HORIZON}"], HORIZON - CUT + 1)
    alone = whole(name, ONE_RANK)
    for hypergradients, _, steps in (found["alone"], gone_on(name, folder / name / mesh, ONE_RANK)):
        assert steps == HORIZON - CUT + 1
        if mesh == "1x4x1":
            assert hypergradients == alone
        assert relative_error(hypergradients, alone) < ROUNDING


def test_what_is_damaged_half_written_or_of_another_run_is_passed_over(tmp_path: Path) -> None:
    cut_off("sgd", tmp_path, ONE_RANK)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"inner-{CUT - 2}", f"inner-{CUT - 1}"]
    expected = whole("sgd", ONE_RANK)
    assert gone_on("sgd", tmp_path / "none", ONE_RANK) == (expected, [], HORIZON)

    assert gone_on("sgd", tmp_path, ONE_RANK, {"seed": 1}) == (expected, [], HORIZON)
    assert (
        gone_on("sgd", tmp_path, ONE_RANK, {**RUN, "compile": "inductor"})[2] == HORIZON - CUT + 1
    )  # not of another one
    (tmp_path / "inner-9").mkdir()  # without a manifest
    file = tmp_path / f"inner-{CUT - 1}" / "rank-0.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    damaged = f"{file.parent} is damaged (rank-0.safetensors) and is passed over"
    found, notes, steps = gone_on("sgd", tmp_path, ONE_RANK)
    assert (found, steps) == (expected, HORIZON - CUT + 2)
    assert notes == [damaged, f"goes on from inner step {CUT - 2} of {HORIZON}"]


def test_a_disk_that_takes_nothing_is_noted_and_the_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (problem, values), notes = cases()["sgd"], list[str]()
    keeping = keeper(tmp_path / "file", ONE_RANK, notes, seconds=0.0)
    estimate = estimate_forward(InnerRun(problem, values, 0, HORIZON, ONE_RANK, go_on, keeping))
    assert estimate.hypergradients == whole("sgd", ONE_RANK)
    assert len(notes) == 1 and notes[0].startswith("no more checkpoints within this outer step: ")


def test_a_disk_that_is_full_is_noted_and_the_run_goes_on(tmp_path: Path) -> None:
    (problem, values), notes = cases()["sgd"], list[str]()
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, usual[1]))  # bytes; a checkpoint has 8,000 and more
    try:
        keeping = keeper(tmp_path, ONE_RANK, notes, seconds=0.0)
        estimate = estimate_forward(InnerRun(problem, values, 0, HORIZON, ONE_RANK, go_on, keeping))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert estimate.hypergradients == whole("sgd", ONE_RANK)
    assert len(notes) == 1 and notes[0].startswith("no more checkpoints within this outer step: ")
    assert list(tmp_path.iterdir()) == []


def test_a_search_that_is_interrupted_within_an_outer_step_loses_none_of_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "switch").write_text("")
    config = {
        "task": {"name": "own_tasks:cut", "switch": "switch"},
        "inner": {"epochs": 2},
        "hyperparameters": {"lr": {"init": 0.05, "step": 0.02, "buckets": 3}, "momentum": {"init": 0.5, "step": 0.1}},
        "outer": {"optimizer": "sign", "steps": 2},
        "checkpoint": {"every_seconds": 1e-9},
    }
    with pytest.raises(KeyboardInterrupt):
        fds_dist.optimize({**config, "name": "cut"}, progress=False)
    (tmp_path / "switch").unlink()
    kept = list((tmp_path / "runs/cut/checkpoints").glob("inner-*"))
    assert len(kept) == 2
    result = fds_dist.optimize(resume="runs/cut", progress=False)
    expected = fds_dist.optimize({**config, "name": "whole"}, progress=False)
    assert [record.hypergradients for record in result.history] == [r.hypergradients for r in expected.history]
    assert [record.val_loss for record in result.history] == [record.val_loss for record in expected.history]
    assert not list((tmp_path / "runs/cut/checkpoints").glob("inner-*"))  # of no use any more


if __name__ == "__main__":
    torch.set_num_threads(1)
    four_ranks(Path(sys.argv[1]))
