"""Hypergradients from random directions: exact with as many as elements, right in the mean with fewer.

As a program, what each of two ranks does: `… FOLDER`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import start_ranks
from problems import CPU, ONE_RANK, Buckets, TensorTask, flat, images, make_problem, mlp, relative_error
from torch import Tensor

import fds_dist
from fds_dist.common.faults import UserError
from fds_dist.distributed.environment import read_environment
from fds_dist.distributed.mesh import MeshShape, Ranks
from fds_dist.inner.estimators import Estimate, estimate_by_directions, estimate_reverse
from fds_dist.inner.estimators.random_directions import element_units, orthonormal_rows, random_directions
from fds_dist.inner.plan import estimator_cost
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerRun

HORIZON, DRAWS = 4, 200
BUCKETS: Buckets = {"lr": [0.2, 0.1, 0.3, 0.2], "momentum": [0.5, 0.8], "weight_decay": [0.02, 0.01]}
VALUES = flat(BUCKETS)
STEPS = {"lr": 0.1, "momentum": 0.05, "weight_decay": 0.002}
SHAPES = {"1x2x1": MeshShape(1, 2, 1), "1x1x2": MeshShape(1, 1, 2)}


def make(**options: Any) -> Problem:
    """Eight learned numbers whose steps differ as their sizes do."""
    task = TensorTask(mlp, images(16, "train"), images(8, "val"))
    problem = make_problem(task, BUCKETS, **options)
    learned = tuple(replace(owner, step=STEPS[owner.name]) for owner in problem.space.learned)
    return replace(problem, space=replace(problem.space, learned=learned))


def run(number: int = 0, ranks: Ranks = ONE_RANK, **options: Any) -> InnerRun:
    return InnerRun(make(**options), VALUES, number, HORIZON, ranks)


def in_steps(hypergradients: Sequence[float]) -> Tensor:
    """Hypergradients [..., K] by λ in units of its steps, in which the directions are orthonormal."""
    return torch.tensor(hypergradients, dtype=torch.float64) * element_units(run())


@cache
def draws(count: int) -> Tensor:
    """[DRAWS, K] in units of steps; the task is the same in every run, only the directions differ."""
    estimator = random_directions(count)
    return in_steps([estimator(run(number)).hypergradients for number in range(DRAWS)])  # type: ignore[arg-type]


@cache
def exact() -> Tensor:
    return in_steps(estimate_reverse(run()).hypergradients)


@pytest.mark.parametrize("options", [{}, {"method": "jvp", "chunk_size": 3}])
def test_with_as_many_directions_as_elements_it_is_reverse_mode(options: dict[str, Any]) -> None:
    estimate = estimate_by_directions(run(**options))
    # A rotation there and back: float64 rounding, as between exact methods.
    assert relative_error(in_steps(estimate.hypergradients), exact()) < 1e-12
    assert estimate.val_loss == pytest.approx(estimate_reverse(run()).val_loss, rel=1e-12)


def test_directions_are_orthonormal_and_new_in_each_outer_step() -> None:
    rows = orthonormal_rows(run(), 3)
    torch.testing.assert_close(rows @ rows.mT, torch.eye(3, dtype=torch.float64))
    assert torch.equal(rows, orthonormal_rows(run(), 3))
    assert not torch.equal(rows, orthonormal_rows(run(1), 3))


SINGLE = pytest.param(1, marks=pytest.mark.slow)
"""Slow: several directions are drawn as one is, and made orthogonal besides."""


@pytest.mark.parametrize("count", [SINGLE, 4])
def test_the_mean_is_reverse_mode(count: int) -> None:
    mean, error = draws(count).mean(0), draws(count).std(0) / DRAWS**0.5
    # Of 8 means, each within 2 standard errors with probability 95 %: 6 or more with 99 %. The seeds are fixed.
    distances = ((mean - exact()) / error).abs()
    assert int((distances < 2).sum()) >= 6 and distances.max() < 4


@pytest.mark.parametrize("count", [SINGLE, 4])
def test_the_error_is_what_is_told(count: int) -> None:
    size = len(VALUES)
    squared = ((draws(count) - exact()).square().sum(1) / exact().square().sum()).mean().item()
    # The mean of 200 draws, whose squares scatter by about as much as they are: 7 % each, three of them.
    assert squared == pytest.approx(size / count - 1, rel=0.25)


def ranks_of(folder: Path) -> None:
    environment, found = read_environment(), dict[str, Any]()
    for mesh, shape in SHAPES.items():
        with Ranks(environment, shape, CPU) as ranks:
            found[mesh] = random_directions(3)(run(1, ranks)).hypergradients
    (folder / f"{environment.rank}.json").write_text(json.dumps(found))


def test_two_ranks_get_the_numbers_of_one(tmp_path: Path) -> None:
    ended = start_ranks([__file__, str(tmp_path)], 2, [tmp_path])
    assert [(rank.status, rank.err) for rank in ended] == [(0, "")] * 2
    alone = random_directions(3)(run(1)).hypergradients
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["1x2x1"] == alone  # the same bits
        assert relative_error(found["1x1x2"], alone) < 1e-12  # sums over parts of a batch


def test_cost() -> None:
    problem = make()
    assert [estimator_cost("random_directions", problem, 10, count=count) for count in (1, 3, 8, 20)] == [
        10 * (1 + 2 * tangents) for tangents in (1, 3, 8, 8)
    ]


# --- from the config ---

CONFIG: dict[str, Any] = {
    "task": {"name": "own_tasks:blobs"},
    "inner": {"steps": 6},
    "hyperparameters": {"lr": {"init": 0.1, "step": 0.02, "buckets": 3}, "momentum": {"init": 0.5, "step": 0.1}},
    "outer": {"optimizer": "sign", "steps": 2},
    "estimator": "random_directions",
    "random_directions": {"count": 2},
    "name": "run",
}


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("own_folder")
def test_a_search_by_random_directions_is_witnessed_and_goes_on_where_it_stopped() -> None:
    result = fds_dist.optimize(CONFIG, progress=False)
    assert [len(record.hypergradients["lr"]) for record in result.history] == [3, 3]
    half = fds_dist.optimize(CONFIG, ["outer.steps=1", "name=half"], progress=False)
    resumed = fds_dist.optimize(None, ["outer.steps=2"], resume=half.run_dir, progress=False)
    assert resumed.schedule == result.schedule
    (told,) = [each for each in fds_dist.check(CONFIG).built.remarks if "checked against plain PyTorch" in each]
    assert "hypergradient to" in told  # with as many directions as elements, which is exact


@pytest.mark.usefixtures("own_folder")
def test_check_tells_the_error_beside_reverse(capsys: pytest.CaptureFixture[str]) -> None:
    from fds_dist.cli import main

    Path("config.yaml").write_text(json.dumps(CONFIG))
    assert main(["check", "config.yaml"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "has 2 tangents instead of 4: a step costs 5 plain steps (4 by reverse mode)" in printed
    assert "with an error of 1 times their length" in printed


@pytest.mark.usefixtures("own_folder")
@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "random_directions.count=5",
            "count: 5 directions for 4 learned numbers; expected at most 4; estimator=forward",
        ),
        ("tangents.prune.ratio=0.5", "0.5 has no effect with estimator random_directions, whose tangents belong to no"),
        ("tangents.clip_hvp=1.0", "1 has no effect with estimator random_directions"),
        ("random_directions.count=0", "0 is out of range; expected a whole number of at least 1"),
    ],
)
def test_what_cannot_be_is_one_line(override: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        fds_dist.optimize(CONFIG, [override], progress=False)


@pytest.mark.usefixtures("own_folder")
def test_compare_refuses_it() -> None:
    with pytest.raises(UserError, match="random_directions is not compared"):
        fds_dist.compare(CONFIG, progress=False)


def estimates(count: int) -> Estimate:
    return random_directions(count)(run())


if __name__ == "__main__":
    torch.set_num_threads(1)
    ranks_of(Path(sys.argv[1]))
