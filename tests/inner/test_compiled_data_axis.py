"""Traced steps of ranks that share out each batch, beside eager ones of one process. As a program, what each of two
ranks runs: `… FOLDER`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from compiled_runs import BUCKETS, linear, told
from launching import start_ranks
from problems import CPU, ONE_RANK, TensorTask, flat, image_task, images, make_problem, mlp, one_conv_bn, relative_error
from torch import Tensor

from fds_dist.distributed.environment import read_environment
from fds_dist.distributed.mesh import MeshShape, Ranks
from fds_dist.inner import compiled_training
from fds_dist.inner.estimators import Estimator, estimate_forward, estimate_reverse
from fds_dist.inner.estimators.greedy import greedy_estimator
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerRun
from fds_dist.tangents.compiled import steps, ways
from fds_dist.tangents.compiled.graph import Graph

SHAPE = MeshShape(1, 1, 2)
HORIZON = 4
"""Steps: two with three tangents, which are compared with eager ones, and two with four."""
ROUNDING = 1e-12
"""Sums over parts of a batch round differently: 1e-16 each, through 4 steps whose errors grow a little each."""


def of_odd_size() -> TensorTask:
    """Batches of 7 samples: parts of 3 and 4."""
    return TensorTask(mlp, images(35, "train"), images(16, "val"), batch_size=7)


def problem(task: TensorTask, **options: Any) -> Problem:
    return make_problem(task, BUCKETS, method="jvp", **options)


def cases() -> dict[str, tuple[Problem, Estimator]]:
    return {
        "forward": (problem(image_task(mlp), clip_norm=0.3), estimate_forward),
        "batch-norm": (problem(image_task(one_conv_bn)), estimate_forward),
        "uneven parts": (problem(of_odd_size()), estimate_forward),
        "micro-batches": (problem(image_task(mlp), accumulate=2), estimate_forward),
        "greedy": (problem(image_task(mlp)), greedy_estimator(0.5)),
        "reverse": (problem(image_task(one_conv_bn)), estimate_reverse),
    }


def eager_cases() -> dict[str, tuple[Problem, Estimator]]:
    """What is tried with faults, on the network that is traced in the shortest time."""
    return {
        "eager": (problem(image_task(linear)), estimate_forward),
        "eager reverse": (problem(image_task(linear)), estimate_reverse),
    }


IN_PAIRS = ("forward", "batch-norm")  # cases that take two tangents at a time


def traced(problem: Problem, chunk: int = 2) -> Problem:
    return replace(problem, tangents=replace(problem.tangents, compile="trace", compiled_chunk=chunk))


def ways_of(problem: Problem) -> list[int]:
    """By which ways the functions that were made are run at last."""
    return [each.way for each in (problem.compiled_steps, *problem.compiled_sweep) if each.made]


def got(problem: Problem, estimator: Estimator, ranks: Ranks) -> dict[str, Any]:
    notes: list[str] = []
    estimate = estimator(InnerRun(problem, flat(BUCKETS), 0, HORIZON, ranks, note=notes.append))
    found = {"hypergradients": list(estimate.hypergradients), "val_loss": estimate.val_loss}
    return found | {"notes": notes, "ways": ways_of(problem)}


def wrong_on_rank_1(rank: int) -> Callable[..., Graph]:
    """The trace, on rank 1 off by a hundredth of one tensor."""
    trace = ways.trace

    def tracing(*arguments: Any) -> Graph:
        graph = trace(*arguments)

        def run(*tensors: Tensor) -> list[Tensor]:
            results = list(graph.run(*tensors))
            results[-1] = results[-1] * 1.011
            return results

        return replace(graph, run=run) if rank == 1 else graph

    return tracing


def failing_on_rank_1(rank: int) -> Callable[..., Graph]:
    """The trace, which on rank 1 fails."""
    trace = ways.trace

    def tracing(*arguments: Any) -> Graph:
        if rank == 1:
            raise RuntimeError("no trace here")
        return trace(*arguments)

    return tracing


def starved_on_rank_1(most: int) -> Callable[[int], Callable[..., Graph]]:
    """The trace, whose calls on rank 1 run out of memory, once all is sent, with more than `most` tangents."""

    def starved(rank: int) -> Callable[..., Graph]:
        trace = ways.trace

        def tracing(function: Any, inputs: Any, *others: Any) -> Graph:
            graph, tangents = trace(function, inputs, *others), len(inputs.directions)

            def run(*tensors: Tensor) -> list[Tensor]:
                results = list(graph.run(*tensors))
                if tangents > most:
                    raise torch.OutOfMemoryError(LACK)
                return results

            return replace(graph, run=run) if rank == 1 else graph

        return tracing

    return starved


def starved_beside_the_eager_step(rank: int) -> Callable[..., str]:
    """The comparison, which on rank 1 runs out of memory once the eager step has sent what it sends."""
    difference = ways.difference

    def comparing(step: Any, reference: Callable[[Any], Any], inputs: Any, coarse: bool) -> str:
        if rank == 1:
            reference(inputs)
            raise torch.OutOfMemoryError(LACK)
        return difference(step, reference, inputs, coarse)

    return comparing


def starved_of_tangents(rank: int) -> Callable[..., Any]:
    """The tangents of a trial, for which rank 1 has no memory."""

    def lacks(*_: Any) -> Any:
        raise torch.OutOfMemoryError(LACK)

    return lacks if rank == 1 else compiled_training.with_random_tangents


LACK = "CUDA out of memory. Tried to allocate 2.00 GiB."
FAULTS: dict[str, tuple[Any, str, Callable[[int], Any]]] = {
    "wrong": (ways, "trace", wrong_on_rank_1),
    "failing": (ways, "trace", failing_on_rank_1),
    "starved in a step": (ways, "trace", starved_on_rank_1(0)),
    "starved beside the eager step": (ways, "difference", starved_beside_the_eager_step),
    "starved of tangents": (compiled_training, "with_random_tangents", starved_of_tangents),
    "starved of two": (ways, "trace", starved_on_rank_1(1)),
}
"""What rank 1 meets → where, and what stands there, by the rank."""


def run_all(folder: Path) -> None:
    """All that this rank gets."""
    environment = read_environment()
    with Ranks(environment, SHAPE, CPU) as ranks:
        found, made = dict[str, Any](), dict[str, Problem]()
        for name, (each, estimator) in cases().items():
            made[name] = traced(each, 2 if name in IN_PAIRS else 1)
            with mock.patch.object(steps, "Timed", told({1: 0.4, 2: (1.0, 0.5)[environment.rank]})):
                found[name] = got(made[name], estimator, ranks)
        found["calls"] = made["forward"].compiled_steps.calls_for(2)
        found |= {name: got(*case, ranks) for name, case in eager_cases().items()}
        eager, estimator = eager_cases()["eager"]
        for name, (place, function, fault) in FAULTS.items():
            with mock.patch.object(place, function, fault(environment.rank)):
                found[name] = got(traced(eager), estimator, ranks)
        with mock.patch.object(ways, "difference", starved_beside_the_eager_step(environment.rank)):
            eager, estimator = eager_cases()["eager reverse"]
            found["starved reverse"] = got(traced(eager), estimator, ranks)
        kept = made["forward"]
        sent = [node for node in kept.compiled_steps.graph.module.graph.nodes if "fds_dist" in str(node.target)]
        found["order"] = [
            str(node.kwargs["after"]) == str(before) for before, node in zip([None, *sent[:-1]], sent, strict=True)
        ]
    with Ranks(environment, SHAPE, CPU) as ranks:  # another group, for which nothing is traced anew
        found["again"] = got(kept, estimate_forward, ranks)
    (folder / f"{environment.rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks got."""
    folder = tmp_path_factory.mktemp("ranks")
    ended = start_ranks([__file__, str(folder)], 2, [folder])
    assert [(rank.status, rank.err) for rank in ended] == [(0, "")] * 2
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", cases())
def test_ranks_that_share_out_a_batch_trace_their_steps(name: str, by_rank: list[dict[str, Any]]) -> None:
    exact = got(*cases()[name], ONE_RANK)
    here, there = (rank[name] for rank in by_rank)
    assert here == there  # the same bits on every rank
    assert set(here["ways"]) == {1}
    assert all("one at a time" in note for note in here["notes"])  # where bits of rows depend on their neighbours
    assert relative_error(here["hypergradients"], exact["hypergradients"]) < ROUNDING
    assert here["val_loss"] == pytest.approx(exact["val_loss"], rel=ROUNDING)


def test_ranks_that_share_out_a_batch_split_tangents_alike(by_rank: list[dict[str, Any]]) -> None:
    assert [rank["calls"] for rank in by_rank] == [[1, 1]] * 2  # by the longest times; rank 1 alone would not split


@pytest.mark.parametrize(
    ("name", "notes"),
    [
        (
            "wrong",
            (
                "the step by trace is not right: another rank's is not; steps are taken eagerly",
                "the step by trace is not right: the tangents differ by 1.1e-02 from the eager step's; ",
            ),
        ),
        (
            "failing",
            (
                "on another rank the step cannot be traced; steps are taken eagerly",
                "the step cannot be traced (RuntimeError: no trace here); steps are taken eagerly",
            ),
        ),
    ],
)
def test_all_parts_are_taken_eagerly_where_one_cannot_be_traced_or_is_wrong(
    name: str, notes: tuple[str, str], by_rank: list[dict[str, Any]]
) -> None:
    for rank, note in zip(by_rank, notes, strict=True):
        assert rank[name]["ways"] == [0]
        assert rank[name]["hypergradients"] == rank["eager"]["hypergradients"]  # to the last bit
        assert rank[name]["notes"][-1].startswith(note)


OUT = f"out of memory ({LACK})"
OTHER = "another rank is out of memory"


@pytest.mark.parametrize("name", ["starved in a step", "starved beside the eager step", "starved of tangents"])
def test_all_parts_are_taken_eagerly_where_one_rank_runs_out_of_memory(
    name: str, by_rank: list[dict[str, Any]]
) -> None:
    for rank, lack in zip(by_rank, (OTHER, OUT), strict=True):
        told = rank[name]
        assert told["ways"] == [0]
        assert told["hypergradients"] == rank["eager"]["hypergradients"]  # to the last bit
        halved, eager = told["notes"]
        assert halved == f"tangents are taken 1 at a time: {lack} with 2; steps are taken by trace"
        assert eager.endswith("; steps are taken eagerly")


def test_a_sweep_goes_on_eagerly_on_all_ranks_where_one_runs_out_of_memory(by_rank: list[dict[str, Any]]) -> None:
    for rank, lack in zip(by_rank, (OTHER, OUT), strict=True):
        assert rank["starved reverse"]["ways"] == [0, 0]
        assert rank["starved reverse"]["hypergradients"] == rank["eager reverse"]["hypergradients"]  # to the last bit
        notes = rank["starved reverse"]["notes"]
        assert len(notes) == 2 and all(f"{lack}; " in note and note.endswith(" taken eagerly") for note in notes)


def test_all_ranks_take_half_as_many_where_one_has_no_memory_for_more(by_rank: list[dict[str, Any]]) -> None:
    for rank, lack in zip(by_rank, (OTHER, OUT), strict=True):
        told = rank["starved of two"]
        assert told["ways"] == [1]
        assert told["hypergradients"] == by_rank[0]["starved of two"]["hypergradients"]
        assert relative_error(told["hypergradients"], rank["eager"]["hypergradients"]) < ROUNDING
        (halved,) = told["notes"]
        assert halved == f"tangents are taken 1 at a time: {lack} with 2; steps are taken by trace"


def test_a_graph_says_in_what_order_ranks_send(by_rank: list[dict[str, Any]]) -> None:
    for rank in by_rank:
        # A tangent's columns and those of the gradient's norm, outputs and their tangents, products, weights.
        assert len(rank["order"]) >= 6
        assert all(rank["order"])


def test_a_graph_outlives_the_group_of_its_ranks(by_rank: list[dict[str, Any]]) -> None:
    for rank in by_rank:
        assert rank["again"]["hypergradients"] == rank["forward"]["hypergradients"]
        assert rank["again"]["ways"] == [1]


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_all(Path(sys.argv[1]))
