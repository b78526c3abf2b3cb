"""Which ways of a compiled step are tried, and what happens where one fails only then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from compiled_runs import BUCKETS, HORIZON, as_if_timed
from problems import ONE_RANK, flat, image_task, make_problem, mlp
from torch import Tensor, nn

from fds_dist.distributed.mesh import Ranks
from fds_dist.inner.estimate import Estimate
from fds_dist.inner.estimators import estimate_forward
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerRun
from fds_dist.tangents.compiled import steps as steps_module
from fds_dist.tangents.compiled import ways as ways_module
from fds_dist.tangents.compiled.graph import Graph


@pytest.fixture(autouse=True)
def _as_few_calls_as_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_timed(monkeypatch, {})


def by(way: str) -> Problem:
    problem = make_problem(image_task(mlp), BUCKETS)
    return replace(problem, tangents=replace(problem.tangents, compile=way, compiled_chunk=3))


def estimated(problem: Problem, ranks: Ranks = ONE_RANK) -> tuple[Estimate, list[str]]:
    """The estimate of a run, and what it noted."""
    notes: list[str] = []
    return estimate_forward(InnerRun(problem, flat(BUCKETS), 0, HORIZON, ranks, note=notes.append)), notes


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Graph, tuple[Tensor, ...]], Any]], None]:
    """Puts a function in the place of inductor's code: of the traced graph and its arguments."""

    def put(run: Callable[[Graph, tuple[Tensor, ...]], Any]) -> None:
        def compiled(graph: Graph, inputs: Any, module: nn.Module) -> Graph:
            return replace(graph, run=lambda *tensors: run(graph, tensors))

        monkeypatch.setattr(ways_module, "compiled", compiled)

    return put


def off(results: Sequence[Tensor]) -> list[Tensor]:
    """The results with an error in the last one."""
    return [*results[:-1], results[-1] * 1.011]


@pytest.mark.parametrize(("is_wrong", "tried"), [(False, [2]), (True, [1])])
def test_rows_are_tried_of_the_way_that_is_taken(
    is_wrong: bool, tried: list[int], compiler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler(lambda graph, tensors: off(graph.run(*tensors)) if is_wrong else graph.run(*tensors))
    problem, found = by("inductor"), list[int]()
    has_same_bits = steps_module.has_same_bits

    def noting(*arguments: Any) -> bool:
        found.append(problem.compiled_steps.way)
        return has_same_bits(*arguments)

    monkeypatch.setattr(steps_module, "has_same_bits", noting)
    assert estimated(problem)[0] == estimated(by("trace"))[0]
    assert found[:2] == tried * 2 and set(found[:2]) == {problem.compiled_steps.way}  # 1 and 2 of three tangents
    assert [problem.compiled_steps.calls_for(rows) for rows in (1, 2, 3)] == [(1,), (2,), (3,)]


def test_code_that_fails_with_fewer_tangents_leaves_the_trace(compiler: Any) -> None:
    def failing(graph: Graph, tensors: tuple[Tensor, ...]) -> Any:
        if len(tensors[graph.rows[0]]) < 3:
            raise RuntimeError("made for three\nand no other number")
        return graph.run(*tensors)

    compiler(failing)
    problem = by("inductor")
    estimate, notes = estimated(problem)
    assert notes == [
        "the step by inductor is not right: other numbers of tangents fail (RuntimeError: made for three); "
        "steps are taken by trace"
    ]
    assert estimate == estimated(by("trace"))[0]
    assert [problem.compiled_steps.calls_for(rows) for rows in (1, 2, 3)] == [(1,), (2,), (3,)]


class BesideAnother(Ranks):
    """This process, and what another rank, which is not there, tells of its ways.

    Args:
        ways: how far it goes, each time that ranks agree; the last one from then on.
    """

    def __init__(self, *ways: float) -> None:
        super().__init__(ONE_RANK.environment, ONE_RANK.shape, torch.device("cpu"))
        self._ways = list(ways)

    def gather_numbers(self, axis: str, numbers: Sequence[float]) -> list[list[float]]:
        here = super().gather_numbers(axis, numbers)
        if axis != "tangent" or len(numbers) != 4 or numbers[1] != -numbers[0]:  # of something else
            return here
        way = self._ways.pop(0) if len(self._ways) > 1 else self._ways[0]
        return [*here, [way, -way, 1.0, 1.0]]  # its rows are independent, and it has enough memory


@pytest.mark.parametrize(
    ("other", "compared_by"),
    [
        ([1], [1, 1]),  # it has no compiler: this rank's code is not even compared
        ([2, 1], [2, 1, 1]),  # it finds its code wrong: this rank, whose code is right, tries the trace then
    ],
)
def test_the_way_that_another_rank_holds_this_one_back_to_is_tried(
    other: list[int], compared_by: list[int], compiler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler(lambda graph, tensors: graph.run(*tensors))
    problem = by("inductor")
    compared, difference = list[int](), ways_module.difference

    def noting(*arguments: Any) -> str:
        compared.append(problem.compiled_steps.way)
        return difference(*arguments)

    monkeypatch.setattr(ways_module, "difference", noting)
    estimate, notes = estimated(problem, BesideAnother(*other))
    assert notes == ["another rank cannot take its steps as this one does; steps are taken by trace"]
    assert compared == compared_by
    assert estimate == estimated(by("trace"))[0]
    assert [problem.compiled_steps.calls_for(rows) for rows in (1, 2, 3)] == [(1,), (2,), (3,)]
