"""How many tangents are taken at once: by measured bytes, and half as many on all ranks where one runs out of memory.

As a program, `python test_chunk_memory.py FOLDER` is one of two ranks; the second one has memory for two tangents.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import start_ranks
from problems import CPU, flat, image_task, make_problem, mlp, relative_error
from torch import nn

from fds_dist.build import Build
from fds_dist.build import chunk as agreed_chunk
from fds_dist.commands.inputs import launched
from fds_dist.common.memory import free_bytes, peak_bytes
from fds_dist.config import Config
from fds_dist.inner import compile_choice
from fds_dist.inner.chunk_trial import COMPILED, fitting, in_chunks, size_that_fits, size_with_memory
from fds_dist.inner.estimators import estimate_forward
from fds_dist.inner.horizon import run_horizon
from fds_dist.inner.measurement import compiled_peaks, kept_bytes, step_peak
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerRun
from fds_dist.inner.stopwatch import run_steps
from fds_dist.tangents.compiled import ways
from fds_dist.tangents.products import JvpPoint

BUCKETS = {"lr": [0.2] * 6, "momentum": [0.6], "weight_decay": [0.02]}
ROUNDING = 1e-11
"""Of float64: a batched product adds in another order."""
ASKED = "Tried to allocate 2.00 GiB."


def wide() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 300), nn.Tanh(), nn.Linear(300, 4))


def problem_of(chunk_size: int | None, build: Callable[[], nn.Module] = mlp) -> Problem:
    return make_problem(image_task(build), BUCKETS, method="jvp", chunk_size=chunk_size)


def allocating(most: int, function: Callable[..., Any], tangents: Callable[..., int]) -> Callable[..., Any]:
    """`function`, which has memory for `most` tangents."""

    def limited(*args: Any) -> Any:
        if tangents(*args) > most:
            raise torch.OutOfMemoryError(f"CUDA out of memory. {ASKED}")
        return function(*args)

    return limited


def limit(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Products of more than `most` tangents run out of memory."""
    products = allocating(most, JvpPoint.products, lambda point, tangents, *_: len(tangents))
    monkeypatch.setattr(JvpPoint, "products", products)


@pytest.mark.parametrize(("most", "expected"), [(8, 8), (7, 4), (3, 2), (1, 1)])
def test_half_as_many_are_tried_until_there_is_memory(
    most: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, most)
    size, lack = size_with_memory(problem_of(8), 8, 8, 1)
    assert size == expected
    assert (ASKED in lack) == (expected < 8)


def test_another_error_is_raised_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(JvpPoint, "products", fails)
    with pytest.raises(RuntimeError, match="a bug"):
        size_with_memory(problem_of(8), 8, 8, 1)


def test_the_size_is_the_largest_on_the_line_through_one_and_two() -> None:
    for one, each, free in ((100, 7, 130), (100, 7, 99), (0, 1, 5), (50, 60, 1000)):
        exact = [size for size in range(1, 17) if one + each * (size - 1) <= free]
        assert fitting(one, one + each, free, 16) == max(exact, default=1)
    assert fitting(5, 5, 0, 16) == 16  # tangents that take nothing


@pytest.mark.parametrize("wanted", [1, 3, 6])
def test_the_measured_size_fits_and_one_more_would_not(wanted: int) -> None:
    problem = problem_of(None, wide)
    kept = 9 * problem.state_bytes
    peaks = [step_peak(in_chunks(problem, size), size) for size in (wanted, wanted + 1)]
    free = round((kept + sum(peaks) / 2) / 0.9)  # nine tenths of it are planned with
    assert size_that_fits(problem, 16, 8, 1, free) == wanted
    assert size_that_fits(problem, 2, 8, 1, 10 * free) == 2


def test_what_runs_out_of_memory_while_it_is_measured_is_taken_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, 1)
    assert size_that_fits(problem_of(None), 16, 8, 1, free_bytes(CPU)) == 1


def traced(chunk: int) -> Problem:
    problem = problem_of(None)
    return replace(problem, tangents=replace(problem.tangents, compile="trace", compiled_chunk=chunk))


@pytest.mark.parametrize("place", ["trace", "difference"])
def test_compiled_steps_take_half_as_many_too(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    argument = {"trace": 1, "difference": 2}[place]  # where a step is traced, and compared with the eager one
    monkeypatch.setattr(ways, place, allocating(3, getattr(ways, place), lambda *args: len(args[argument].directions)))
    notes: list[str] = []
    problem = traced(8)
    estimate = estimate_forward(InnerRun(problem, flat(BUCKETS), 0, 8, note=notes.append))
    assert problem.compiled_steps.chunk == 2
    assert [note.split(" (")[0] for note in notes] == [
        f"tangents are taken {size} at a time: out of memory" for size in (4, 2)
    ]
    assert notes[0].endswith("with 8; steps are taken by trace")
    monkeypatch.undo()
    assert estimate == estimate_forward(InnerRun(traced(2), flat(BUCKETS), 0, 8))  # to the last bit


def test_compiled_steps_of_one_tangent_without_memory_are_taken_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "trace", allocating(0, ways.trace, lambda *_: 1))
    notes: list[str] = []
    run_horizon(InnerRun(traced(1), flat(BUCKETS), 0, 8, note=notes.append), [0])
    assert len(notes) == 1 and notes[0].endswith("; steps are taken eagerly")


@pytest.mark.parametrize(("size", "build"), [(1, mlp), (3, wide), (6, wide)])
def test_the_peak_of_compiled_steps_is_predicted(size: int, build: Callable[[], nn.Module]) -> None:
    problem = problem_of(None, build)
    options = replace(problem.tangents, compile="trace", compiled_chunk=size)
    taken = peak_bytes(lambda: run_steps(replace(problem, tangents=options), 8, 3), CPU)
    predicted = max(compiled_peaks(problem, size)) + kept_bytes(problem, 8)
    assert predicted == pytest.approx(taken, rel=0.15)  # counted, the same on any machine; see `COMPARED_STATES`


CONFIG = {
    "task": {"name": "synthetic", "dimension": 6, "samples": 12, "steps_per_epoch": 8},
    "hyperparameters": {"lr": {"init": 0.1, "buckets": 8, "step": 0.01, "shape": "constant"}},
    "inner": {"epochs": 1},
    "outer": {"steps": 1, "judge_seeds": 0},
    "tangents": {"method": "jvp", "chunk_size": 4},
    "dtype": "float64",
    "tracking": {"wandb": {"mode": "disabled"}},
}


LONG_RUN: dict[str, Any] = {**CONFIG, "tangents": {"method": "jvp"}}


@cache
def free_for(room: float) -> int:
    """Free bytes that hold `room` tangents at once."""
    with launched(CONFIG) as (built, _):
        one, two = (max(compiled_peaks(built.problem, size)) for size in (1, 2))
        return round((kept_bytes(built.problem, 8) + one + (two - one) * (room - 1)) / COMPILED)


def planned(room: float, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any] | Config = LONG_RUN) -> Build:
    """A run on a CPU, compiled if that is possible, with free memory for `room` tangents at once."""
    free = free_for(room)
    monkeypatch.setattr(compile_choice, "LONG", 1)
    monkeypatch.setattr(compile_choice, "has_compiler", lambda device: True)
    monkeypatch.setattr(agreed_chunk, "free_bytes", lambda *_: free)
    with launched(config) as (built, _):
        return built


def taken_by(built: Build) -> tuple[str, int, str]:
    """The way of the steps, the tangents at once, and the way that the run's config names."""
    options = built.problem.tangents
    return options.compile, options.compiled_chunk, built.config.tangents.compile


@pytest.mark.parametrize(
    ("room", "expected", "remark"),
    [
        (20.0, ("inductor", 8, "inductor"), "steps are compiled by inductor, 8 tangents at a time: "),
        (5.5, ("inductor", 5, "inductor"), "tangents are taken 5 at a time, not 8: more do not fit into 50% of free"),
        (1.5, ("off", 8, "off"), "steps are taken eagerly after all: two tangents at once do not fit into 50% of "),
    ],
)
def test_a_cpu_compiles_long_runs_as_far_as_memory_goes(
    room: float, expected: tuple[str, int, str], remark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = planned(room, monkeypatch)
    assert taken_by(built) == expected
    assert built.remarks[-1].startswith(remark)


def test_a_run_goes_on_in_the_way_in_which_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, eager = planned(20.0, monkeypatch), planned(1.5, monkeypatch)
    assert taken_by(planned(1.5, monkeypatch, compiled.config)) == ("inductor", 1, "inductor")
    assert taken_by(planned(20.0, monkeypatch, eager.config))[0] == "off"


def test_a_number_of_tangents_that_is_named_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {**CONFIG, "tangents": {"method": "jvp", "chunk_size": 4}}
    assert taken_by(planned(1.5, monkeypatch, config)) == ("inductor", 4, "inductor")


def test_eager_steps_that_a_compiled_run_may_fall_back_on_are_tried_too(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, 2)
    config = {**CONFIG, "tangents": {"method": "jvp", "chunk_size": 4, "compile": "trace"}}
    with launched(config) as (built, _):
        assert (taken_by(built), built.problem.chunk_size) == (("trace", 4, "trace"), 2)
    assert built.remarks[-1].startswith("in eager steps tangents are taken 2 at a time, not 4: rank 0 is out of memory")


def run_rank(folder: Path) -> None:
    """One of two ranks: what it takes at once, what is said of it, and the hypergradients."""
    with launched(CONFIG) as (before, ranks):
        products = JvpPoint.products
        if ranks.rank == 1:
            JvpPoint.products = allocating(2, products, lambda point, tangents, *_: len(tangents))
        built = agreed_chunk.with_chunk(before, ranks)
        JvpPoint.products = products
        values = built.problem.space.initial()
        compiled = replace(built.problem.tangents, compile="trace", compiled_chunk=4)
        notes = list[str]()
        if ranks.rank == 1:
            ways.trace = allocating(2, ways.trace, lambda _, inputs, *__: len(inputs.directions))
        traced_run = InnerRun(replace(built.problem, tangents=compiled), values, 0, 8, ranks, note=notes.append)
        told = {
            "sizes": [before.problem.chunk_size, built.problem.chunk_size, 0],
            "remark": built.remarks[-1],
            "eager": estimate_forward(InnerRun(built.problem, values, 0, 8, ranks)).hypergradients,
            "traced": estimate_forward(traced_run).hypergradients,
            "notes": notes,
        }
        told["sizes"][2] = traced_run.problem.compiled_steps.chunk
        (folder / f"{ranks.rank}.json").write_text(json.dumps(told))


def test_where_one_rank_runs_out_of_memory_all_take_half_as_many(tmp_path: Path) -> None:
    ended = start_ranks([__file__, str(tmp_path)], 2, [tmp_path])
    assert [(rank.status, rank.err) for rank in ended] == [(0, "")] * 2
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    with launched(CONFIG) as (built, _):
        alone = estimate_forward(InnerRun(built.problem, built.problem.space.initial(), 0, 8)).hypergradients
    for rank in told:
        assert rank["sizes"] == [4, 2, 2]
        assert rank["remark"].startswith("tangents are taken 2 at a time, not 4: rank 1 is out of memory (")
        assert rank["remark"].endswith(f"{ASKED}) with more")
        assert rank["eager"] == told[0]["eager"] and rank["traced"] == told[0]["traced"]
        for way in ("eager", "traced"):
            assert relative_error(rank[way], alone) < ROUNDING
    assert told[0]["notes"][0].startswith("tangents are taken 2 at a time: another rank is out of memory with 4")


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_rank(Path(sys.argv[1]))
