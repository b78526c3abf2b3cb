"""How `tangents.compile` becomes the way in which a run takes its steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from problems import Buckets, image_task, make_problem, mlp

from fds_dist.inner import compile_choice
from fds_dist.inner.compile_choice import LONG, with_compile
from fds_dist.inner.plan import Chunks, make_plan
from fds_dist.inner.problem import Problem

BUCKETS: Buckets = {"lr": [0.2, 0.1], "momentum": [0.6]}
PAPER = [*(round(300 * bucket / 7) for bucket in range(7)), 0, 0]
"""Where the tangents of 7 learning rates, a momentum and a weight decay begin over 300 steps."""


def chosen(requested: str, problem: Problem | None = None, **changes: Any) -> tuple[Problem, str]:
    problem = problem or make_problem(image_task(mlp), BUCKETS)
    arguments = {"horizons": [LONG], "starts": [0] * 8, "data_ranks": 1}
    return with_compile(problem, requested, **{**arguments, **changes})


def test_short_searches_stay_as_they_were() -> None:
    problem, remark = chosen("auto", horizons=[LONG // 2 - 1, LONG // 2])
    assert (problem.tangents.compile, remark) == ("off", "")


@pytest.mark.parametrize(("compiler", "way"), [(True, "inductor"), (False, "trace")])
def test_long_searches_on_a_gpu_are_compiled_where_there_is_a_compiler(
    compiler: bool, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compile_choice, "has_compiler", lambda device: compiler)
    on_gpu = replace(make_problem(image_task(mlp), BUCKETS), device=torch.device("cuda"))
    problem, remark = chosen("auto", on_gpu, horizons=[LONG // 2, LONG // 2])
    assert problem.tangents.compile == way
    assert f"with {LONG:,} inner steps this pays" in remark


@pytest.mark.parametrize("compiler", [True, False])
def test_long_searches_on_a_cpu_are_compiled_where_there_is_a_compiler(
    compiler: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compile_choice, "has_compiler", lambda device: compiler)
    problem, remark = chosen("auto")
    assert problem.tangents.compile == ("inductor" if compiler else "off")
    assert ("this pays" in remark) == compiler
    assert chosen("trace")[0].tangents.compile == "trace"


@pytest.mark.parametrize("requested", ["off", "trace", "inductor"])
def test_a_way_that_is_named_is_taken(requested: str) -> None:
    problem, remark = chosen(requested, horizons=[1])
    assert (problem.tangents.compile, remark) == (requested, "")


@pytest.mark.parametrize("requested", ["auto", "trace"])
def test_what_cannot_be_compiled_is_named_and_runs_eagerly(requested: str) -> None:
    task: Any = image_task(mlp)
    task.augment = lambda inputs, hyperparameters: inputs
    problem = replace(make_problem(task, BUCKETS), device=torch.device("cuda"))
    cause = "the random numbers of the task's augment are drawn outside of PyTorch's generators"
    problem, remark = chosen(requested, problem)
    assert problem.tangents.compile == "off"
    assert remark == ("" if requested == "auto" else f"tangents.compile has no effect: {cause}")


def test_along_the_data_axis_steps_are_compiled_where_that_is_asked_for_and_not_captured() -> None:
    on_gpu = make_problem(image_task(mlp), BUCKETS)
    on_gpu = replace(
        on_gpu, device=torch.device("cuda"), tangents=replace(on_gpu.tangents, method="jvp", cuda_graph=True)
    )
    for data_ranks, by_auto in ((1, True), (2, False)):
        assert (chosen("auto", on_gpu, data_ranks=data_ranks)[0].tangents.compile != "off") == by_auto
        asked, remark = chosen("trace", on_gpu, data_ranks=data_ranks)
        assert (asked.tangents.compile, asked.tangents.cuda_graph, remark) == ("trace", data_ranks == 1, "")


def test_other_forms_of_a_problem() -> None:
    problem, _ = chosen("inductor")
    assert problem.by("plain").tangents.compile == "off"
    assert problem.in_float64().tangents.compile == "trace"
    assert replace(problem).compiled_steps is not problem.compiled_steps is problem.compiled_steps


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(("live", "expected"), [(0, 1), (1, 1), (9, 9), (40, 16)])
def test_as_many_tangents_are_taken_at_once_as_there_are(device: str, live: int, expected: int) -> None:
    problem = replace(make_problem(image_task(mlp), BUCKETS, method="jvp"), device=torch.device(device))
    assert chosen("trace", problem, starts=[0] * live)[0].tangents.compiled_chunk == expected
    pairs = replace(problem, tangents=replace(problem.tangents, chunk_size=2))
    assert chosen("trace", pairs, starts=[0] * live)[0].tangents.compiled_chunk == 2


@pytest.mark.parametrize("starts", [PAPER, [0, 0, 0], [100, 200], [0] * 8])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("filled", [True, False])
def test_the_cost_of_chunks_is_that_of_their_calls(starts: list[int], size: int, filled: bool) -> None:
    exact = 0
    for step in range(300):
        left = sum(start <= step for start in starts)
        while True:  # one call at least, with a tangent at least
            count = size if filled else max(1, min(size, left))
            exact, left = exact + 1 + 2 * count, left - size
            if left <= 0:
                break
    assert make_plan(starts, 300, 1).cost(0, Chunks(size, filled)) == exact
