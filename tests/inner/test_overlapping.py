"""A step along the `data` axis computes while what it sends is under way. As a program, what each of two ranks runs:
`… FOLDER`, and `… lost`, where rank 1 ends in the midst of a step."""

from __future__ import annotations

import copy
import json
import os
import re
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import start_ranks
from problems import CPU, ONE_RANK, TensorTask, conv_bn, flat, image_task, images, make_problem, mlp, relative_error
from torch import Tensor, nn

from fds_dist.commands.check.cost import cost_report
from fds_dist.common.memory import peak_bytes
from fds_dist.distributed import exchanges
from fds_dist.distributed.data_axis import DataAxis
from fds_dist.distributed.environment import read_environment
from fds_dist.distributed.errors import RankLost
from fds_dist.distributed.in_flight import Sent, ahead, arrived
from fds_dist.distributed.mesh import MeshShape, Ranks
from fds_dist.inner import measurement
from fds_dist.inner.estimators import Estimator, estimate_forward
from fds_dist.inner.estimators.greedy import greedy_estimator
from fds_dist.inner.horizon import run_horizon
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerRun
from fds_dist.inner.training import Training
from fds_dist.outer.progress import OuterSettings
from fds_dist.tangents import METHODS, Point
from fds_dist.tangents.products import DoubleBackwardPoint

BUCKETS = {"lr": [0.1], "momentum": [0.5], "weight_decay": [0.01]}
"""Three tangents, all live from the first step on."""
HORIZON = 3
PEAK_STEPS = 4
"""Of the runs whose memory is taken, each of which one more tangent lives from."""
ROUNDING = 1e-12
"""Sums over parts of a batch round differently: 1e-16 each, through 3 steps whose errors grow a little each."""
DIFFERENCES = 1e-8
"""Differences of gradients err by η^⅔ ≈ 4e-11 each (`difference.py`), by other errors where the gradients round
differently."""


def cases() -> dict[str, tuple[Problem, Estimator]]:
    def problem(build: Callable[[], Any] = mlp, **options: Any) -> Problem:
        return make_problem(image_task(build), BUCKETS, **options)

    return {
        "double_backward": (problem(conv_bn, method="double_backward"), estimate_forward),
        "jvp": (problem(conv_bn, method="jvp"), estimate_forward),
        "jvp, two at once": (problem(method="jvp", chunk_size=2), estimate_forward),
        "difference": (problem(method="difference"), estimate_forward),
        "micro-batches": (problem(method="double_backward", accumulate=2), estimate_forward),
        "micro-batches, two at once": (problem(method="jvp", accumulate=3, chunk_size=2), estimate_forward),
        "clipping": (problem(method="double_backward", clip_norm=0.3, clip_hvp=0.01), estimate_forward),
        "greedy": (problem(method="double_backward"), greedy_estimator(0.5)),
    }


def numbers(ranks: Ranks, name: str) -> list[float]:
    problem, estimator = cases()[name]
    estimate = estimator(InnerRun(problem, flat(BUCKETS), 0, HORIZON, ranks))
    return [*estimate.hypergradients, estimate.val_loss]


def wide() -> nn.Module:
    """Where vectors over the weights take most of the memory."""
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 300), nn.Tanh(), nn.Linear(300, 4))


def peak_cases() -> dict[str, Problem]:
    def problem(build: Callable[[], Any] = wide, **options: Any) -> Problem:
        task = TensorTask(build, images(256), images(64), batch_size=64)
        return make_problem(task, {"lr": [0.01] * PEAK_STEPS, "momentum": [0.5]}, **options)

    return {
        "batch-norm": problem(conv_bn, method="double_backward"),
        "one at a time": problem(method="double_backward"),
        "jvp": problem(method="jvp"),
        "two at once": problem(method="jvp", chunk_size=2),
        "micro-batches": problem(method="jvp", chunk_size=2, accumulate=2),
    }


def peak_of(problem: Problem, ranks: Ranks) -> int:
    run = InnerRun(problem, problem.space.initial(), 0, PEAK_STEPS, ranks)
    return peak_bytes(lambda: estimate_forward(run), CPU)


def run_all(folder: Path) -> None:
    """The numbers of each case, with what is sent under way and with one thing after the other; and peaks of memory."""
    environment = read_environment()
    with Ranks(environment, MeshShape(1, 1, 2), CPU) as ranks:
        assert ranks.data.ahead == 1
        in_order = copy.copy(ranks)
        in_order.data = ranks.data.in_order()
        told: dict[str, Any] = {name: [numbers(ranks, name), numbers(in_order, name)] for name in cases()}
        told["peaks"] = {name: peak_of(problem, ranks) for name, problem in peak_cases().items()}
    (folder / f"{environment.rank}.json").write_text(json.dumps(told))


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("overlapping")
    ended = start_ranks([__file__, str(folder)], 2, [folder])
    assert [(rank.status, rank.err) for rank in ended] == [(0, "")] * 2
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", cases())
def test_overlapping_changes_no_bits(by_rank: list[dict[str, Any]], name: str) -> None:
    overlapping, in_order = by_rank[0][name]
    assert overlapping == in_order
    assert by_rank[1][name] == [overlapping, in_order]
    bound = DIFFERENCES if name == "difference" else ROUNDING
    assert relative_error(overlapping, numbers(ONE_RANK, name)) < bound


@pytest.mark.parametrize("name", peak_cases())
def test_peak_memory_is_predicted_within_a_tenth(by_rank: list[dict[str, Any]], name: str) -> None:
    problem = peak_cases()[name]
    report = cost_report(problem, OuterSettings((PEAK_STEPS,)), MeshShape(1, 1, 2))
    assert report.ranks[0].memory.total == pytest.approx(by_rank[0]["peaks"][name], rel=0.1)
    measured = report.measured
    by_shapes = measurement._peaks_by_shapes(problem, 2, measured.tangents)
    assert by_shapes == pytest.approx((measured.peak_bytes, measured.rank_peak_bytes), rel=0.1)


def end_in_a_step() -> None:
    """Rank 1 ends as it begins with its second products; rank 0 tells what it then hears."""
    environment = read_environment()
    products, calls = DoubleBackwardPoint.products, iter(range(9))

    def ends(*arguments: Any) -> Any:
        if environment.rank and next(calls):
            os._exit(3)
        return products(*arguments)

    DoubleBackwardPoint.products = ends  # type: ignore[method-assign]
    problem, estimator = cases()["clipping"]
    with Ranks(environment, MeshShape(1, 1, 2), CPU) as ranks:
        try:
            estimator(InnerRun(problem, flat(BUCKETS), 0, HORIZON, ranks))
        except RankLost as error:
            sys.stdout.write(str(error))


def test_a_rank_lost_in_the_midst_of_a_step_is_named(tmp_path: Path) -> None:
    left, lost = start_ranks([__file__, "lost"], 2, [tmp_path])
    assert (left.status, left.err, lost.status) == (0, "", 3)
    assert re.match(r"lost another rank: rank 1 \(.*\) has ended; see its output", left.out)


@dataclass
class Network:
    """Stands in for the other rank, which sends the same as this one, and writes down what happens in which order."""

    events: list[str] = field(default_factory=list)

    def send(self, name: str, tensor: Tensor, rank: int, size: int) -> Sent[Tensor]:
        number = sum(event.startswith(f"send {name}") for event in self.events)
        self.events.append(f"send {name} {number}")
        result = {"gather": torch.stack([tensor] * size), "add": tensor * size}[name]

        def receive() -> Tensor:
            self.events.append(f"await {name} {number}")
            return result

        return Sent(receive)

    def watched(self, make_point: Callable[..., Point]) -> Callable[..., Point]:
        """A method, whose products are events."""

        def make(*arguments: Any) -> Point:
            self.events.append("forward")
            point = make_point(*arguments)
            products = point.products

            def noted(*chunk: Any) -> Any:
                self.events.append(f"products {sum(event.startswith('products') for event in self.events)}")
                return products(*chunk)

            point.products = noted  # type: ignore[method-assign]
            return point

        return make


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    network = Network()
    monkeypatch.setattr(exchanges, "send", network.send)
    # Outputs, in a loss.
    monkeypatch.setattr(exchanges, "received", lambda name, part, rank, size: torch.stack([part] * size))
    for method in ("double_backward", "jvp", "difference"):
        monkeypatch.setitem(METHODS, method, network.watched(METHODS[method]))
    begin_step = Training.begin_step

    def begin(*arguments: Any) -> Callable[[], None]:
        network.events.append("step")
        return begin_step(*arguments)

    monkeypatch.setattr(Training, "begin_step", begin)
    return network


def one_step(axis: DataAxis, **options: Any) -> None:
    ranks = copy.copy(ONE_RANK)
    ranks.data = axis
    problem = make_problem(image_task(mlp), BUCKETS, **options)
    run_horizon(InnerRun(problem, flat(BUCKETS), 0, 1, ranks), range(3))


TWO = DataAxis(0, 2)


@pytest.mark.parametrize("method", ["double_backward", "jvp", "difference"])
def test_what_is_sent_is_awaited_after_what_can_be_computed_without_it(network: Network, method: str) -> None:
    one_step(TWO, method=method)
    # The sums of products are numbers 0, 2 and 3; 1 is that of the gradient. The last gather is that of the weights.
    assert network.events == [
        *["send gather 0", "send gather 1", "forward"],
        *["await gather 0", "products 0", "send add 0", "send add 1", "send gather 2"],
        *["await gather 1", "products 1", "send add 2", "await add 0", "await add 1"],
        *["await gather 2", "products 2", "send add 3", "await add 2"],
        *["step", "send gather 3", "await add 3", "await gather 3"],
    ]


def test_micro_batches_overlap_each_by_itself(network: Network) -> None:
    one_step(TWO, method="double_backward", accumulate=2)
    first = network.events[: network.events.index("send gather 3")]
    assert first == [
        *["send gather 0", "send gather 1", "forward"],
        *["await gather 0", "products 0", "send add 0", "send add 1", "send gather 2"],
        *["await gather 1", "products 1", "send add 2", "await add 0"],
        *["await gather 2", "products 2", "send add 3", "await add 2", "await add 3", "await add 1"],
    ]


def test_a_rank_alone_sends_nothing_and_takes_one_chunk_after_the_other(network: Network) -> None:
    one_step(DataAxis(), method="jvp")
    assert network.events == ["forward", "products 0", "products 1", "products 2", "step"]


def test_a_result_is_made_when_it_is_awaited() -> None:
    made: list[int] = []
    sent = arrived(2).then(lambda value: made.append(value) or value + 1)
    assert made == []
    assert sent.wait() == 3
    assert made == [2]


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_items_are_made_ahead(count: int) -> None:
    made: list[int] = []
    items = ahead((made.append(item) or item for item in range(4)), count)
    assert [(item, len(made)) for item in items] == [(item, min(item + 1 + count, 4)) for item in range(4)]


def test_what_was_awaited_is_held_no_more() -> None:
    tensor = torch.ones(3)
    sent, alive = arrived(tensor), weakref.ref(tensor)
    del tensor
    assert sent.wait().sum() == 3
    assert alive() is None


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "lost":
        end_in_a_step()
    else:
        run_all(Path(sys.argv[1]))
