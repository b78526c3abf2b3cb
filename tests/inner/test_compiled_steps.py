"""Runs whose steps are traced or compiled, beside runs whose steps are taken operator by operator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from compiled_runs import (
    ADAM_BUCKETS,
    BUCKETS,
    HORIZON,
    LOSS_BUCKETS,
    ROUNDING,
    as_if_timed,
    linear,
    with_dropout,
)
from problems import (
    Buckets,
    TensorTask,
    conv_bn,
    flat,
    image_task,
    images,
    make_problem,
    mlp,
    one_conv_bn,
    regression_task,
    relative_error,
    smoothed_task,
)
from torch import Tensor, nn
from torch.nn import functional as F

from fds_dist.inner.compile_choice import has_compiler
from fds_dist.inner.compiled_training import store
from fds_dist.inner.estimate import Estimate
from fds_dist.inner.estimators import estimate_forward
from fds_dist.inner.estimators.reverse import estimate_reverse
from fds_dist.inner.horizon import run_horizon
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerRun, Tangents
from fds_dist.tangents.compiled import ChunkTangents
from fds_dist.tangents.compiled import steps as steps_module
from fds_dist.tangents.compiled import ways as ways_module
from fds_dist.tangents.compiled.graph import Graph, inductor_options, trace
from fds_dist.tangents.optimizers import Adam
from fds_dist.tangents.optimizers.schedule_free import ScheduleFree
from fds_dist.tangents.step import Pruning


@pytest.fixture(autouse=True)
def _as_few_calls_as_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_timed(monkeypatch, {})


def traced(problem: Problem, chunk: int = 4, way: str = "trace") -> Problem:
    """The problem with compiled steps."""
    return replace(problem, tangents=replace(problem.tangents, compile=way, compiled_chunk=chunk))


def estimated(problem: Problem, buckets: Buckets = BUCKETS, number: int = 0) -> tuple[Estimate, list[str]]:
    """The estimate of a run, and what it noted."""
    notes: list[str] = []
    return estimate_forward(InnerRun(problem, flat(buckets), number, HORIZON, note=notes.append)), notes


CASES: dict[str, tuple[Callable[[], TensorTask], Buckets, dict[str, Any]]] = {
    "mlp": (lambda: image_task(mlp), BUCKETS, {}),
    "batch-norm": (image_task, BUCKETS, {}),
    "pruned and clipped": (
        lambda: image_task(mlp),
        BUCKETS,
        {"pruning": Pruning("alternate", 0.5), "clip_hvp": 0.05, "clip_gradient": 0.1, "clip_norm": 0.3},
    ),
    "loss hyperparameters": (smoothed_task, LOSS_BUCKETS, {}),
    "squared error and average": (regression_task, BUCKETS, {"ema": 0.9}),
    "schedule-free": (lambda: image_task(mlp), BUCKETS, {"optimizer": ScheduleFree()}),
    "dropout": (lambda: image_task(with_dropout), BUCKETS, {"method": "jvp"}),
    "micro-batches": (lambda: image_task(one_conv_bn), BUCKETS, {"accumulate": 2}),
    "adam and groups": (
        lambda: image_task(mlp),
        ADAM_BUCKETS,
        {"optimizer": Adam(), "groups": {"bias": "bias", "rest": "."}},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_traced_steps_give_what_eager_steps_give(name: str) -> None:
    task, buckets, options = CASES[name]
    problem = make_problem(task(), buckets, **options)
    exact, _ = estimated(problem, buckets)
    estimate, _ = estimated(traced(problem, chunk=3), buckets)  # four tangents or more: the last chunk is filled up
    assert relative_error(estimate.hypergradients, exact.hypergradients) < ROUNDING
    assert estimate.val_loss == pytest.approx(exact.val_loss, rel=ROUNDING)


def test_live_buffers_have_their_tangents_in_traced_steps() -> None:
    problem = make_problem(image_task(one_conv_bn), BUCKETS, method="jvp", val_batch_norm="running")
    names = [name for name, _ in problem.module(0).named_buffers() if "running" in name]
    problem = replace(problem, live_buffers=tuple(names))
    exact, estimate = estimated(problem)[0], estimated(traced(problem))[0]
    assert relative_error(estimate.hypergradients, exact.hypergradients) < ROUNDING


def test_traced_steps_agree_with_reverse_mode() -> None:
    problem = make_problem(image_task(one_conv_bn), BUCKETS)
    reverse = estimate_reverse(InnerRun(problem, flat(BUCKETS), 0, HORIZON))
    assert relative_error(estimated(traced(problem))[0].hypergradients, reverse.hypergradients) < ROUNDING


@pytest.mark.parametrize("build", [mlp, one_conv_bn, with_dropout])
def test_a_tangent_has_the_same_bits_beside_any_others(build: Callable[[], nn.Module]) -> None:
    problem = traced(make_problem(image_task(build), BUCKETS, dtype=torch.float32), chunk=4)
    run = InnerRun(problem, flat(BUCKETS), 0, HORIZON)
    _, together = run_horizon(run, [0, 2, 3, 1])
    for elements in ([0, 1], [3], [2]):
        training, alone = run_horizon(run, elements)
        rows = [together.elements.index(element) for element in elements]
        assert torch.equal(alone.weights, together.weights[rows])
        assert torch.equal(alone.optimizer[0], together.optimizer[0][rows])
    training, _ = run_horizon(run, [0, 2, 3, 1])
    idle, _ = run_horizon(run, [])  # a rank without tangents
    assert torch.equal(idle.state.weights, training.state.weights)


def tracing(make_run: Callable[[Graph], Callable[..., list[Tensor]]]) -> Callable[..., Graph]:
    """`trace`, whose graphs run as `make_run` says."""
    return lambda *arguments: replace(graph := trace(*arguments), run=make_run(graph))


@pytest.mark.parametrize("build", [mlp, one_conv_bn, with_dropout])
def test_a_step_takes_as_many_tangents_as_there_are(
    build: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, sizes = make_problem(image_task(build), BUCKETS, dtype=torch.float32, method="jvp"), list[int]()

    def noting(graph: Graph) -> Callable[..., list[Tensor]]:
        def run(*tensors: Tensor) -> list[Tensor]:
            sizes.append(len(tensors[graph.rows[0]]))
            return list(graph.run(*tensors))

        return run

    filled = traced(problem, chunk=3)
    with monkeypatch.context() as patched:
        patched.setattr(steps_module, "has_same_bits", lambda *_: False)
        expected = estimated(filled)[0]
    monkeypatch.setattr(ways_module, "trace", tracing(noting))
    found = traced(problem, chunk=3)
    assert estimated(found)[0] == expected  # to the last bit
    steps = found.compiled_steps
    assert [steps.calls_for(rows) for rows in (1, 2, 3)] == [(1,), (2,), (3,)]
    assert [filled.compiled_steps.calls_for(rows) for rows in (1, 2, 3)] == [(3,), (3,), (3,)]
    # In the second half there is a fourth tangent, in a call of its own.
    assert sizes[-HORIZON - HORIZON // 2 :] == [3] * (HORIZON // 2) + [3, 1] * (HORIZON // 2)

    as_if_timed(monkeypatch, {1: 0.4, 2: 0.5, 3: 2.0})
    fast, known = traced(problem, chunk=3), len(sizes)
    assert estimated(fast)[0] == expected  # however they are split
    assert [fast.compiled_steps.calls_for(rows) for rows in (1, 2, 3)] == [(1,), (2,), (2, 1)]
    assert sizes[known:][-2 - HORIZON :] == [2, 1, *[2, 2] * (HORIZON // 2)]


def test_a_number_of_tangents_that_gives_them_other_bits_is_filled_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def off_alone(graph: Graph) -> Callable[..., list[Tensor]]:
        """Off by a rounding in the state's first number, where there is one tangent."""

        def run(*tensors: Tensor) -> list[Tensor]:
            first, *others = graph.run(*tensors)
            alone = len(tensors[graph.rows[0]]) == 1
            return [first * (1 + 2e-16) if alone else first, *others]

        return run

    problem = make_problem(image_task(mlp), BUCKETS)
    expected = estimated(traced(problem, chunk=3))[0]
    monkeypatch.setattr(ways_module, "trace", tracing(off_alone))
    other = traced(problem, chunk=3)
    assert estimated(other)[0] == expected
    assert [other.compiled_steps.calls_for(rows) for rows in (1, 2, 3)] == [(2,), (2,), (3,)]


@pytest.mark.parametrize(
    ("make", "is_copied"),
    [
        (lambda: [torch.ones(2, 3), torch.ones(2, 3)], False),
        (lambda: [torch.ones(2, 3)] * 2, True),  # one tensor
        (lambda: list(torch.ones(4, 3).split(2)), True),  # two pieces of one
        (lambda: [torch.ones(2, 3), torch.ones(2, 1).expand(2, 3)], True),
    ],
)
def test_results_that_share_memory_do_not_become_the_tangents(
    make: Callable[[], list[Tensor]], is_copied: bool
) -> None:
    weights, velocity = make()
    tangents = Tangents((0, 1), torch.zeros(2, 3), [torch.zeros(2, 3)])
    store(ChunkTangents(weights, [velocity], {}), tangents, slice(0, 2))
    assert (tangents.weights is not weights) == is_copied
    tangents.weights[:] = 7  # as an eager step does
    assert torch.equal(tangents.optimizer[0], torch.ones(2, 3))


def test_steps_under_autocast_are_compared_as_coarsely_as_they_round() -> None:
    problem = replace(make_problem(image_task(mlp), BUCKETS, dtype=torch.float32), low=torch.bfloat16)
    estimate, notes = estimated(traced(problem, chunk=2))
    assert notes == []
    # Products round to 8 bits, 4e-3, and a batched one adds them up in another order.
    assert relative_error(estimate.hypergradients, estimated(problem)[0].hypergradients) < 2e-2


def test_batches_of_another_shape_are_taken_eagerly() -> None:
    task = image_task(mlp)
    task.train = images(37, "train")  # the last of five batches has five images
    problem = make_problem(task, BUCKETS)
    assert {len(batch[0]) for batch in task.train_batches(0, 0)} == {8, 5}
    estimate, notes = estimated(traced(problem))
    assert relative_error(estimate.hypergradients, estimated(problem)[0].hypergradients) < ROUNDING
    assert notes == []


class Scaled(nn.Module):
    """A network with a frozen scale that is drawn anew for every outer step."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.network = mlp()
        self.scale = nn.Parameter(torch.tensor(scale), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x) * self.scale


def test_frozen_parameters_are_those_of_the_outer_step() -> None:
    seeds: dict[int, float] = {}

    def build(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            return Scaled(seeds.setdefault(seed, 1.0 + len(seeds)))

    eager = replace(make_problem(image_task(mlp), BUCKETS), build_model=build)
    problem = traced(eager)
    for number in (0, 1):
        exact, (estimate, notes) = estimated(eager, number=number)[0], estimated(problem, number=number)
        assert relative_error(estimate.hypergradients, exact.hypergradients) < ROUNDING
        assert notes == []


@pytest.fixture(scope="module")
def of_convolutions() -> Graph:
    """The traced step of a network with two convolutions."""
    problem = traced(make_problem(image_task(), BUCKETS), chunk=2)
    estimated(problem)
    return problem.compiled_steps.graph


def test_memory_that_is_never_read_is_not_allocated_in_a_traced_step(of_convolutions: Graph) -> None:
    operators = Counter(str(node.target) for node in of_convolutions.module.graph.nodes)
    assert operators["aten.convolution_backward.default"] > 3
    assert operators["aten.new_empty.default"] == 0


@pytest.mark.parametrize(("precision", "channels_last"), [("ieee", False), ("tf32", True)])
def test_a_gpu_merges_small_kernels_and_has_channels_last_where_it_has_tensor_cores(
    of_convolutions: Graph, precision: str, channels_last: bool
) -> None:
    convolutions: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = convolutions.fp32_precision
    convolutions.fp32_precision = precision
    try:
        on_gpu, on_cpu = (inductor_options(of_convolutions, torch.device(kind)) for kind in ("cuda", "cpu"))
    finally:
        convolutions.fp32_precision = before
    assert on_gpu == on_cpu | {"combo_kernels": True, "layout_optimization": channels_last}


class Counting(nn.Module):
    """A network that changes with every call, which a trace does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.calls = mlp(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.network(x) * (1 + 0.1 * self.calls)


class Branching(nn.Module):
    """A network with a branch on the value of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.network = mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x) * (2.0 if x.sum().item() > 0 else 1.0)


def test_a_network_that_hides_its_state_from_the_trace_runs_eagerly() -> None:
    _, notes = estimated(traced(make_problem(image_task(Counting), BUCKETS)))
    assert len(notes) == 1
    assert "the step by trace is not right: " in notes[0] and notes[0].endswith("; steps are taken eagerly")


def test_a_network_that_cannot_be_traced_runs_eagerly() -> None:
    problem = make_problem(image_task(Branching), BUCKETS)
    estimate, notes = estimated(traced(problem))
    assert estimate == estimated(problem)[0]  # to the last bit
    assert len(notes) == 1
    assert notes[0].startswith("the step cannot be traced (") and notes[0].endswith("; steps are taken eagerly")


def test_a_wrong_compilation_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(graph: Graph, inputs: Any, module: nn.Module) -> Graph:
        """Off by a hundredth of one tensor's tangents."""

        def run(*tensors: Tensor) -> list[Tensor]:
            results = list(graph.run(*tensors))
            results[-1] = results[-1] * 1.011
            return results

        return replace(graph, run=run)

    problem = make_problem(image_task(mlp), BUCKETS, dtype=torch.float32)
    monkeypatch.setattr(ways_module, "compiled", wrong)
    estimate, notes = estimated(traced(problem, way="inductor"))
    assert len(notes) == 1 and "differ by 1.1e-02 from the eager step's; steps are taken by trace" in notes[0]
    assert estimate == estimated(traced(problem))[0]


def test_a_failing_compiler_leaves_the_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> Graph:
        raise RuntimeError("no compiler\nhere")

    monkeypatch.setattr(ways_module, "compiled", failing)
    _, notes = estimated(traced(make_problem(image_task(mlp), BUCKETS), way="inductor"))
    assert notes == ["the step cannot be compiled (RuntimeError: no compiler); steps are taken by trace"]


@pytest.mark.skipif(not has_compiler(torch.device("cpu")), reason="needs a C++ compiler")
@pytest.mark.parametrize("build", [linear, pytest.param(conv_bn, marks=pytest.mark.slow)])  # a minute to compile
def test_inductor_compiles_a_step_for_any_number_of_tangents(build: Callable[[], nn.Module]) -> None:
    buckets = {"lr": [0.2, 0.1, 0.2]}
    problem = make_problem(image_task(build, F.cross_entropy), buckets, dtype=torch.float32)
    compiled = traced(problem, chunk=3, way="inductor")
    estimate, notes = estimated(compiled, buckets)
    assert notes == [] and compiled.compiled_steps.way == 2
    assert [compiled.compiled_steps.calls_for(rows) for rows in (1, 2, 3)] == [(1,), (2,), (3,)]
    # Float32 rounding, in another order of sums.
    assert relative_error(estimate.hypergradients, estimated(problem, buckets)[0].hypergradients) < 1e-5


def test_steps_are_compared_with_eager_ones_twice_and_not_anew_in_each_run(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = list[Any]()
    difference = ways_module.difference
    monkeypatch.setattr(ways_module, "difference", lambda *args: calls.append(args) or difference(*args))
    problem = traced(make_problem(image_task(mlp), BUCKETS))
    for number in range(3):
        assert estimated(problem, number=number)[1] == []
    assert len(calls) == 2


def test_a_step_that_cannot_be_captured_runs_without_a_cuda_graph() -> None:
    problem = traced(make_problem(image_task(mlp), BUCKETS))
    problem.compiled_steps.capture = True  # as on a GPU, which there is none of here
    estimate, notes = estimated(problem)
    assert estimate == estimated(traced(make_problem(image_task(mlp), BUCKETS)))[0]
    assert len(notes) == 1 and notes[0].startswith("the step cannot be captured as a CUDA graph (")
    assert notes[0].endswith("; steps are taken by trace")


@pytest.mark.gpu
@pytest.mark.parametrize("build", [mlp, conv_bn, with_dropout])
@pytest.mark.parametrize("way", ["trace", "inductor"])
def test_a_captured_step_gives_what_the_eager_one_gives(way: str, build: Callable[[], nn.Module]) -> None:
    problem = replace(make_problem(image_task(build), BUCKETS, method="jvp"), device=torch.device("cuda"))
    exact, _ = estimated(problem)
    captured = traced(problem, chunk=3, way=way)  # four tangents: two replays a step
    estimate, notes = estimated(captured)
    if build is with_dropout:  # traced, it may draw other masks there (H100, PyTorch 2.11): then eagerly, and says so
        assert notes == [] or notes[0].endswith("steps are taken eagerly")
    else:
        assert notes == [] and captured.compiled_steps.capture
    # Float64 rounding through six steps; kernels of other shapes sum in another order.
    assert relative_error(estimate.hypergradients, exact.hypergradients) < ROUNDING
