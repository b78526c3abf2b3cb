"""The analysis of hypergradient noise: the runs it is made of, how it goes on after an interruption, what it writes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launching import start_ranks
from problems import CPU, ONE_RANK, TensorTask, flat, image_task, make_problem, mlp, smoothed_task
from rich.console import Console
from torch import Tensor

from fds_dist.commands.noise.estimates import estimate_noise
from fds_dist.commands.noise.measure import (
    Unshared,
    cosine_schedule,
    measure_noise,
    run_hypergradients,
    without_sharing,
)
from fds_dist.commands.noise.plot import plot_noise
from fds_dist.commands.noise.report import NoiseReport, print_noise, write_noise
from fds_dist.common.faults import UserError
from fds_dist.common.randomness import derive_seed
from fds_dist.distributed.environment import read_environment
from fds_dist.distributed.mesh import MeshShape, Ranks
from fds_dist.inner.estimate import validate
from fds_dist.inner.estimators import estimate_reverse
from fds_dist.inner.horizon import run_horizon
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerRun, InnerState
from fds_dist.schedule.buckets import bucket_window
from fds_dist.schedule.schedule import Schedule
from fds_dist.schedule.space import Hyperparameter, HyperparameterSpace
from fds_dist.tangents.optimizers import SGD

HORIZON = 12
BUCKETS = {"lr": [0.08, 0.12, 0.1], "momentum": [0.5], "weight_decay": [1e-3, 2e-3]}
SCHEDULE = Schedule(HORIZON, {name: tuple(values) for name, values in BUCKETS.items()})


@dataclass
class VariedTask(TensorTask):
    """Every outer step has weights and training batches of its own; the weights of those in `broken` are NaN."""

    broken: tuple[int, ...] = ()
    models: int = 0

    def train_batches(self, outer_step: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.train[0]), generator=torch.Generator().manual_seed(outer_step))
        x, y = self.train[0][order], self.train[1][order]
        return zip(x.split(self.batch_size), y.split(self.batch_size), strict=True)

    def build_model(self, seed: int) -> torch.nn.Module:
        self.models += 1
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed % 2**32)
            module = self.build()
        if seed in {derive_seed(0, outer_step, "weights") for outer_step in self.broken}:
            torch.nn.init.constant_(next(module.parameters()), torch.nan)
        return module


def varied_problem(*broken: int) -> Problem:
    task = image_task(mlp)
    return make_problem(VariedTask(task.build, task.train, task.val, broken=broken), {"lr": [0.1]})


def printed(report: NoiseReport) -> str:
    text = StringIO()
    print_noise(report, Console(file=text, width=160))
    return text.getvalue()


def last_validation_loss(unshared: Unshared, run: int, stop: int) -> float:
    """After the first `stop` steps of `run`."""
    problem = unshared.problem
    network = problem.network(run)

    def until(state: InnerState, loss: Tensor) -> bool:
        return state.step < stop

    training, _ = run_horizon(InnerRun(problem, unshared.values, run, unshared.horizon, on_step=until))
    return validate(problem, network, training.state, run).loss


@pytest.mark.parametrize("clip_gradient", [None, 0.05])
def test_per_step_hypergradients_of_a_window_sum_to_that_of_its_bucket(clip_gradient: float | None) -> None:
    problem = make_problem(image_task(), BUCKETS, clip_gradient=clip_gradient)
    bucketed = estimate_reverse(InnerRun(problem, flat(BUCKETS), 1, HORIZON)).hypergradients
    found = run_hypergradients(without_sharing(problem, SCHEDULE, HORIZON), run=1)[0]
    summed = [
        found[row, list(bucket_window(bucket, len(values), HORIZON))].sum()
        for row, values in enumerate(BUCKETS.values())
        for bucket in range(len(values))
    ]
    # float64 rounding, 1e-16, through 12 steps; the two sums differ in their order.
    for found_one, reference in zip(summed, bucketed, strict=True):
        assert found_one == pytest.approx(reference, rel=1e-10)


@pytest.mark.parametrize("case", ["optimizer", "loss"])
def test_greedy_hypergradients_are_derivatives_of_the_loss_after_their_own_step(case: str) -> None:
    if case == "loss":
        problem = make_problem(smoothed_task(), {"lr": [0.1], "smoothing": [0.1]}, {"momentum": 0.5})
    else:
        problem = make_problem(image_task(), BUCKETS)
    names = [owner.name for owner in problem.space.learned]
    unshared = without_sharing(problem, Schedule(5, {"lr": (0.1, 0.2, 0.1, 0.3, 0.2)}), 5)
    found = run_hypergradients(unshared, run=0)[1]
    for row, name in enumerate(names):
        for step in range(5):
            differences = []
            for h in (1e-6, -1e-6):
                values = list(unshared.values)
                values[row * 5 + step] += h
                moved = Unshared(unshared.problem, values, 5)
                differences.append(last_validation_loss(moved, 0, step + 1) / 2e-6 * np.sign(h))
            # Central differences: 1e-16/1e-6 of rounding, and h² = 1e-12 of curvature.
            assert found[row, step] == pytest.approx(sum(differences), rel=1e-6, abs=1e-8), (name, step)


def test_without_sharing_takes_values_from_the_schedule_then_from_the_problem() -> None:
    problem = make_problem(image_task(), {"lr": [0.1]}, {"momentum": 0.5, "weight_decay": 1e-3})
    unshared = without_sharing(problem, Schedule(2, {"lr": (0.2, 0.3), "weight_decay": (1e-4,)}), 4)
    assert unshared.problem.space.unpack(unshared.values) == {"lr": [0.2, 0.2, 0.3, 0.3]}
    assert unshared.problem.space.fixed == {"momentum": 0.5, "weight_decay": 1e-4}
    learned = without_sharing(problem, Schedule(2, {}, {"lr": 0.7}), 2)
    assert learned.values == [0.7, 0.7]
    varying = without_sharing(problem, Schedule(2, {"momentum": (0.5, 0.9)}), 2)
    assert varying.problem.space.unpack(varying.values) == {"lr": [0.1, 0.1], "momentum": [0.5, 0.9]}
    warm = HyperparameterSpace((Hyperparameter("lr", (0.1, 0.3), 0.1, buckets=2),), {"momentum": 0.5})
    started = without_sharing(replace(problem, space=warm), Schedule(2, {}), 4)
    assert started.values == [0.1, 0.1, 0.3, 0.3]


def test_cosine_schedule_is_the_papers() -> None:
    schedule = cosine_schedule(varied_problem(), 250)
    assert schedule.at(0) == {"lr": 0.01, "momentum": 0.9}
    assert schedule.at(125)["lr"] == pytest.approx(0.005)
    assert 0 < schedule.at(249)["lr"] < 1e-6


def test_interrupted_analysis_goes_on_where_it_stopped(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    whole = measure_noise(varied_problem(), SCHEDULE, HORIZON, 5, ONE_RANK, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        measure_noise(varied_problem(), SCHEDULE, HORIZON, 5, ONE_RANK, tmp_path / "cut", interrupt)
    cut_off = sorted((tmp_path / "cut" / "runs").iterdir())[2]
    cut_off.write_bytes(cut_off.read_bytes()[:-1])
    problem = varied_problem()
    assert measure_noise(problem, SCHEDULE, HORIZON, 5, ONE_RANK, tmp_path / "cut") == whole
    # Three runs are left, each with a network for each estimator; one more tells settings apart, one a state's size.
    assert problem.task.models == 3 * 2 + 2  # type: ignore[attr-defined]


def test_runs_of_other_settings_are_not_taken(tmp_path: Path) -> None:
    def networks_made(change: Mapping[str, Any], schedule: Schedule = SCHEDULE, horizon: int = HORIZON) -> int:
        problem = replace(varied_problem(), **change)
        measure_noise(problem, schedule, horizon, 4, ONE_RANK, tmp_path)
        return problem.task.models  # type: ignore[attr-defined]

    one_analysis = 4 * 2 + 2
    assert networks_made({}) == one_analysis
    assert networks_made({}) == 1
    for change in ({"clip_gradient": 0.1}, {"seed": 1}, {"dtype": torch.float32}, {"optimizer": SGD(nesterov=True)}):
        assert networks_made(change) == one_analysis, change
    assert networks_made({}, Schedule(2, {"lr": (0.1, 0.2)})) == one_analysis
    assert networks_made({}, SCHEDULE, HORIZON - 1) == one_analysis


def test_diverged_runs_are_left_out_and_told(tmp_path: Path) -> None:
    report = measure_noise(varied_problem(1, 4), SCHEDULE, HORIZON, 7, ONE_RANK, tmp_path)
    assert (report.runs, report.left_out) == (5, 2)
    assert np.isfinite([estimate.variance for estimate in report.estimates]).all()
    assert "2 more runs diverged" in printed(report)


def test_wrong_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"3 of 6 runs have finite"):
        measure_noise(varied_problem(0, 1, 2), SCHEDULE, HORIZON, 6, ONE_RANK, tmp_path)
    with pytest.raises(UserError) as both:
        measure_noise(varied_problem(), SCHEDULE, 1, 3, ONE_RANK, tmp_path)
    assert [fault.key for fault in both.value.faults] == ["horizon", "runs"]
    with pytest.raises(UserError, match=r"momentun: unknown.*did you mean momentum"):
        measure_noise(varied_problem(), Schedule(2, {}, {"momentun": 0.9}), HORIZON, 4, ONE_RANK, tmp_path)


def test_figures_table_and_plot(tmp_path: Path) -> None:
    report = measure_noise(varied_problem(), SCHEDULE, HORIZON, 4, ONE_RANK, tmp_path)
    assert set(report.recommended_buckets) == {"lr", "weight_decay"}  # learned, and changed by the schedule

    write_noise(report, tmp_path / "noise.json")
    content = json.loads((tmp_path / "noise.json").read_text())
    assert content["recommended_buckets"] == report.recommended_buckets
    assert [estimate["mse"] for estimate in content["estimates"]] == [found.mse for found in report.estimates]

    rows = [line.split() for line in printed(report).splitlines() if "greedy" in line]
    assert [row[:2] for row in rows] == [
        [name, estimator] for name in ("lr", "weight_decay") for estimator in ("non-greedy", "greedy")
    ]
    assert [int(row[-1]) for row in rows] == [found.recommended_buckets for found in report.estimates]

    plot_noise(report, tmp_path / "noise")
    assert (tmp_path / "noise.pdf").read_bytes().startswith(b"%PDF")
    assert (tmp_path / "noise.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.filterwarnings("error")
def test_hypergradients_without_noise_are_drawn_too(tmp_path: Path) -> None:
    """Momentum of a schedule whose learning rate is 0 has none, and no logarithm."""
    estimates = [estimate_noise(np.zeros((4, 5)), "momentum", estimator) for estimator in ("non-greedy", "greedy")]
    report = NoiseReport(5, 4, 0, {"momentum": [0.9] * 5}, {"lr": 0.0}, estimates)
    plot_noise(report, tmp_path / "noise")
    assert (tmp_path / "noise.png").stat().st_size > 0
    assert "momentum 1 (no gain from sharing: one is as good)." in printed(report)


def test_two_ranks_share_the_runs_and_find_the_same(tmp_path: Path) -> None:
    alone = measure_noise(varied_problem(), SCHEDULE, HORIZON, 5, ONE_RANK, tmp_path)
    write_noise(alone, tmp_path / "noise.json")
    folders = [tmp_path / "0", tmp_path / "1"]
    for folder in folders:
        folder.mkdir()
    ended = start_ranks([__file__], 2, folders)
    assert [(rank.status, rank.err) for rank in ended] == [(0, "")] * 2
    # Each rank did its own runs, 0, 2, 4 and 1, 3, and both tell what one process finds from the same runs, to the bit.
    assert [len(list((folder / "runs").iterdir())) for folder in folders] == [3, 2]
    for folder in folders:
        assert (folder / "noise.json").read_text() == (tmp_path / "noise.json").read_text()


if __name__ == "__main__":
    environment = read_environment()
    with Ranks(environment, MeshShape(1, environment.world_size, 1), CPU) as all_ranks:
        write_noise(measure_noise(varied_problem(), SCHEDULE, HORIZON, 5, all_ranks, Path()), Path("noise.json"))
