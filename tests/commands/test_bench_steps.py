"""The rows of `bench`: what is timed is an inner run, and the paper's way beside it is right. Times are not judged."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from anywhere_tasks import augmented_task
from problems import CPU, conv_bn, image_task, make_problem, mlp
from torch import Tensor, nn

from fds_dist.cli import main
from fds_dist.commands.bench import steps
from fds_dist.commands.bench.by_hand import PaperStep, PlainStep
from fds_dist.commands.bench.kernels import count_kernels, kernels_per_step
from fds_dist.commands.bench.steps import NO_TIME, Clock, measure_network, rows
from fds_dist.inner.problem import Problem
from fds_dist.inner.stopwatch import REPEATS, Stopwatch, run_steps, time_steps
from fds_dist.tangents.optimizers import Adam

BUCKETS = {"lr": [0.2, 0.1], "momentum": [0.5], "weight_decay": [0.01]}
STEPS = 4


def problem(build: Callable[[], nn.Module] = conv_bn, **changes: Any) -> Problem:
    return make_problem(image_task(build), BUCKETS, **changes)


def test_plain_steps_and_the_papers_tangents_are_those_of_an_inner_run() -> None:
    of = problem()
    plain, paper = PlainStep(of), PaperStep(of, 4)
    for _ in range(STEPS):
        plain()
        paper()
    training, tangents = run_steps(of, 4, STEPS)
    same = partial(torch.testing.assert_close, rtol=1e-11, atol=1e-12)  # 4 steps in float64, added in other orders
    weights = torch.cat([parameter.detach().flatten() for parameter in plain.module.parameters()])
    same(weights, training.state.weights)
    same(paper.weights, training.state.weights)
    assert float(paper.Z.norm(dim=1).min()) > 0
    same(paper.Z, tangents.weights)


def test_the_paper_has_sgd_alone() -> None:
    assert PaperStep.can_do(problem())
    adam = make_problem(image_task(mlp), {"lr": [0.1]}, optimizer=Adam())
    assert not PaperStep.can_do(adam)
    assert {row.method for row in rows(adam)} == {"double_backward", "jvp"}


def test_more_tangents_than_learned_numbers_can_be_timed() -> None:
    watch = time_steps(problem(), 16, long_enough=0.0)
    assert len(watch.seconds) == REPEATS
    assert watch.first_seconds > 0


def test_a_stopwatch_takes_more_of_what_is_short() -> None:
    watch = Stopwatch(CPU, repeats=5, long_enough=0.05)
    while watch():
        torch.zeros(1)
    assert 5 < len(watch.seconds) <= 50


def test_kernels_are_counted_without_views_and_allocations() -> None:
    x = torch.ones(4, 4)

    def work() -> Tensor:
        return (torch.empty(4, 4).copy_(x).t() @ x.view(4, 4)).add_(1)

    assert count_kernels(work, CPU) == 3  # copy_, mm, add_
    assert kernels_per_step(lambda count: [work() for _ in range(count)], CPU) == 3


@pytest.mark.parametrize(("method", "per_tangent"), [("jvp", False), ("double_backward", True)])
def test_batched_tangents_share_their_kernels(method: str, per_tangent: bool) -> None:
    of = problem(method=method, chunk_size=16)
    few, many = (kernels_per_step(lambda count, k=k: run_steps(of, k, count), CPU) for k in (2, 9))
    assert (many > 2 * few) == per_tangent
    assert per_tangent or many == few


def test_all_rows_of_a_network_are_measured_and_what_has_no_time_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "TANGENTS", (1, 4))
    monkeypatch.setattr(steps, "COMPILED", ("trace",))  # a compiler would take longer than all else
    done: list[int] = []
    figures = measure_network(problem(mlp), Clock.of(float("inf")), lambda: done.append(1))
    assert [(row.method, row.compile, row.k) for row in figures.steps] == list(rows(problem(mlp)))
    assert {row.k for row in figures.steps} == {1, 4}
    assert len(done) == len(figures.steps)
    for row in figures.steps:
        assert 0 < row.q25 <= row.median_ms <= row.q75
        assert row.over_limit == pytest.approx(row.median_ms / figures.plain_ms / (1 + 2 * row.k))
        assert row.kernels is not None and row.kernels > figures.plain_kernels > 0
        assert (row.compile_s is None) == (row.compile == "off")
        assert row.peak_bytes > 0
    hurried = measure_network(problem(mlp), Clock.of(0.0), lambda: None)
    assert hurried.steps == ()
    assert len(hurried.left_out[NO_TIME]) == len(figures.steps)


def test_what_cannot_be_compiled_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "TANGENTS", (2,))
    monkeypatch.setattr(steps, "has_compiler", lambda device: False)
    whole = measure_network(problem(mlp), Clock.of(float("inf")), lambda: None)
    assert whole.left_out == {"there is no compiler": ("jvp inductor k = 2",)}
    task, values = augmented_task()
    augmented = measure_network(make_problem(task, values), Clock.of(float("inf")), lambda: None)
    (reason,) = (reason for reason, names in augmented.left_out.items() if "jvp trace k = 2" in names)
    assert "augment" in reason


def test_figures_are_written_to_a_file_and_a_config_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = "{task: {name: digits}, model: {name: mlp, hidden: [4]}, hyperparameters: {lr: {init: 0.1, step: 0.1}}}"
    Path("config.yaml").write_text(config)
    assert main(["bench", "config.yaml", "--json", "bench.json", "--seconds", "0.01"]) == 0
    written = json.loads(Path("bench.json").read_text())
    assert set(written["networks"]["mlp"]) >= {"plain_ms", "steps"}
    assert {"device", "versions"} <= set(written)
    assert main(["bench", "--json", "config.yaml"]) == 2
    assert "config.yaml does not end with .json" in capsys.readouterr().err
    assert Path("config.yaml").read_text() == config
    assert main(["bench", "config.yaml", "--seconds", "0"]) == 2
