"""Runs by reverse mode, there and back, and greedy ones go on where they were kept. As a program, what each of two
ranks does: `… FOLDER`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from launching import start_ranks
from problems import CPU, ONE_RANK, flat, go_on, image_task, make_problem, mlp, one_conv_bn, relative_error
from selection import slow_unless, wanted
from torch import Tensor

from fds_dist.distributed.environment import read_environment
from fds_dist.distributed.mesh import MeshShape, Ranks
from fds_dist.inner import checkpoints
from fds_dist.inner.checkpoints import InnerCheckpoints
from fds_dist.inner.estimate import Estimator
from fds_dist.inner.estimators import estimate_greedy, estimate_reverse
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerRun, InnerState
from fds_dist.tangents.optimizers import Adam
from fds_dist.tangents.optimizers.schedule_free import ScheduleFree

HORIZON = 11
"""Stretches of 4 steps, the last of 3."""
SGD_BUCKETS = {"lr": [0.2, 0.1, 0.3], "momentum": [0.5, 0.8], "weight_decay": [0.02]}
ADAM_BUCKETS = {"lr": [0.02, 0.01], "beta1": [0.8], "weight_decay": [0.1, 0.05]}
SHAPES = {"tangent": MeshShape(1, 2, 1), "data": MeshShape(1, 1, 2)}
ROUNDING = 1e-12
"""Sums over parts of a batch round differently: 1e-16 each, through 11 steps whose errors grow a little each."""


@dataclass(frozen=True)
class Case:
    problem: Problem
    values: list[float]
    estimator: Estimator
    moments: tuple[int, ...]
    """Steps, of `steps`, at which a run is cut off."""
    steps: int = 2 * HORIZON

    def run(self, ranks: Ranks, checkpointer: InnerCheckpoints | None = None) -> list[float]:
        estimate = self.estimator(InnerRun(self.problem, self.values, 0, HORIZON, ranks, go_on, checkpointer))
        return estimate.hypergradients


def cases() -> dict[str, Case]:
    norm = make_problem(image_task(one_conv_bn), SGD_BUCKETS, val_batch_norm="running")
    live = replace(norm, live_buffers=("1.running_mean", "1.running_var"))
    adam = replace(make_problem(image_task(mlp), ADAM_BUCKETS, optimizer=Adam(decoupled=True)), ema=0.9)
    free = replace(adam, ema=None, optimizer=ScheduleFree(adaptive=True))
    every, some = (replace(norm, tangents=replace(norm.tangents, kept_bytes=size)) for size in (2**30, 0))
    sgd, adamw = flat(SGD_BUCKETS), flat(ADAM_BUCKETS)
    greedy = partial(estimate_greedy, discount=0.5)
    return {
        # On the way there: within a stretch, at its end, at the end of the horizon; on the way back: likewise.
        "every state": Case(every, sgd, estimate_reverse, (6, 13)),
        "some states": Case(some, sgd, estimate_reverse, (2, 8, 11, 13, 14, 19)),
        "live buffers": Case(live, sgd, estimate_reverse, (6, 16)),
        "averaged adamw": Case(adam, adamw, estimate_reverse, (6, 16)),
        # Within a bucket, and at the ends of buckets of lr (4, 8) and momentum (6).
        "greedy": Case(norm, sgd, greedy, (4, 6, 7), HORIZON),
        "schedule-free": Case(free, adamw, estimate_reverse, (6, 16)),
        "greedy schedule-free": Case(free, adamw, greedy, (5,), HORIZON),
        "greedy averaged adamw": Case(adam, adamw, greedy, (5,), HORIZON),
    }


CUTS = [(name, moment) for name, case in cases().items() for moment in case.moments]


class Cut(InnerCheckpoints):
    """As if a signal came in the step `moment`."""

    moment: int

    def keep_tensors(
        self, step: int, width: int, tensors: Callable[[], Mapping[str, Tensor]], elements: Sequence[int] = ()
    ) -> None:
        with mock.patch.object(checkpoints, "asked_to_end", lambda: step >= self.moment):
            super().keep_tensors(step, width, tensors, elements)


def keeper(case: Case, folder: Path, ranks: Ranks, notes: list[str], kind: type = InnerCheckpoints) -> Any:
    """One that keeps nothing by itself."""
    return kind(folder, {"seed": 0}, case.steps, ranks, 1e9, count=2, meeting=1, note=notes.append)


def cut_off(case: Case, moment: int, folder: Path, ranks: Ranks) -> list[str]:
    """Runs until `moment`; gives the notes."""
    notes = list[str]()
    cut = keeper(case, folder, ranks, notes, Cut)
    cut.moment = moment
    with pytest.raises(KeyboardInterrupt):
        case.run(ranks, cut)
    return notes


def gone_on(case: Case, folder: Path, ranks: Ranks) -> tuple[list[float], list[str]]:
    """Hypergradients and notes."""
    notes = list[str]()
    return case.run(ranks, keeper(case, folder, ranks, notes)), notes


@pytest.mark.parametrize(("name", "moment"), CUTS)
def test_a_run_goes_on_to_the_bits_of_an_uninterrupted_one(tmp_path: Path, name: str, moment: int) -> None:
    case = cases()[name]
    assert cut_off(case, moment, tmp_path, ONE_RANK) == [f"saved at inner step {moment} of {case.steps}"]
    expected = case.run(ONE_RANK)
    assert gone_on(case, tmp_path, ONE_RANK) == (expected, [f"goes on from inner step {moment} of {case.steps}"])


def test_steps_that_were_taken_there_are_not_taken_again_but_for_a_replay(tmp_path: Path) -> None:
    case, steps = cases()["some states"], list[int]()

    def count(state: InnerState, loss: Tensor) -> bool:
        steps.append(state.step)
        return True

    for moment, expected in ((8, [9, 10, 11]), (14, [])):
        cut_off(case, moment, tmp_path / str(moment), ONE_RANK)
        checkpointer = keeper(case, tmp_path / str(moment), ONE_RANK, [])
        case.estimator(InnerRun(case.problem, case.values, 0, HORIZON, ONE_RANK, count, checkpointer))
        assert steps == expected
        steps.clear()


def kept(axis: str, name: str) -> bool:
    """Whether CI has a case on an axis: one on the first and the next on the second, and on both a run by reverse mode
    and a greedy one whose checkpoints have sums of parts."""
    return name in ("live buffers", "greedy") or list(SHAPES)[list(cases()).index(name) % 2] == axis


def two_ranks(folder: Path) -> None:
    environment, told = read_environment(), dict[str, Any]()
    asked = json.loads((folder / "wanted.json").read_text())
    for axis, shape in SHAPES.items():
        with Ranks(environment, shape, CPU) as ranks:
            for name, case in cases().items():
                if [axis, name] not in asked:
                    continue
                moment = case.moments[-1]
                place = folder / axis / name
                cut_off(case, moment, place, ranks)
                told[f"{axis} {name}"] = {
                    "whole": case.run(ranks),
                    "same": gone_on(case, place, ranks),
                    "from one": gone_on(case, folder / "one" / name, ranks),
                }
    (folder / f"{environment.rank}.json").write_text(json.dumps(told))


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("estimators")
    (path / "wanted.json").write_text(json.dumps(wanted(request, "axis", "name")))
    for name, case in cases().items():
        cut_off(case, case.moments[-1], path / "one" / name, ONE_RANK)
    ended = start_ranks([__file__, str(path)], 2, [path])
    assert [(rank.status, rank.err) for rank in ended] == [(0, "")] * 2
    return path


def is_of_a_part(name: str, axis: str) -> bool:
    """Whether a checkpoint has sums of parts of the `data` axis, which other ranks cannot go on with."""
    return axis == "data" and (name == "live buffers" or name.startswith("greedy"))


@pytest.mark.parametrize(("axis", "name"), slow_unless(kept, product(SHAPES, cases())))
def test_two_ranks_go_on_to_the_bits_of_an_uninterrupted_run(folder: Path, axis: str, name: str) -> None:
    first, second = (json.loads((folder / f"{rank}.json").read_text())[f"{axis} {name}"] for rank in range(2))
    case = cases()[name]
    on = f"goes on from inner step {case.moments[-1]} of {case.steps}"
    assert first == second
    assert first["same"] == [first["whole"], [on]]
    alone = case.run(ONE_RANK)
    for hypergradients, notes in (first["from one"], gone_on(case, folder / axis / name, ONE_RANK)):
        if is_of_a_part(name, axis):
            (note,) = notes  # and the run starts anew
            assert "is damaged (no file has " in note and "part-" in note
        else:
            assert notes == [on]
        if axis == "tangent":
            assert hypergradients == alone
        assert relative_error(hypergradients, alone) < ROUNDING


if __name__ == "__main__":
    torch.set_num_threads(1)
    two_ranks(Path(sys.argv[1]))
