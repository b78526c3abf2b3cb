"""Operators and ranks whose bits would differ are named before training.

`put` has no deterministic kernel on a CPU either, so that this shows what happens on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from problems import CLASSES, CPU, image_task, make_problem, mlp
from torch import Tensor, nn

from fds_dist.common.faults import UserError
from fds_dist.distributed.arithmetic import Arithmetic, arithmetic_restored
from fds_dist.distributed.environment import LaunchEnvironment
from fds_dist.distributed.fingerprint import RunsDiverged
from fds_dist.distributed.mesh import MeshShape, Ranks
from fds_dist.inner import kernels
from fds_dist.inner.dry_run import dry_run
from fds_dist.inner.kernels import check_alike

BUCKETS = {"lr": [0.1]}


class Putting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(36, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.inner(x.clone().put_(torch.tensor([0]), torch.zeros(1, dtype=x.dtype)))


@pytest.fixture
def deterministic() -> Iterator[None]:
    with arithmetic_restored():
        torch.use_deterministic_algorithms(True)
        yield


@pytest.mark.usefixtures("deterministic")
def test_an_operator_without_a_deterministic_kernel_is_named_with_the_way_out() -> None:
    problem = make_problem(image_task(Putting), BUCKETS)
    with pytest.raises(UserError, match=r"consistency.mode: verify .*put_ has none.*expected .*broadcast or off"):
        dry_run(problem, "auto")
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    dry_run(make_problem(image_task(mlp), BUCKETS), "auto")


def test_nothing_is_asked_where_the_run_did_not_ask() -> None:
    dry_run(make_problem(image_task(Putting), BUCKETS), "auto")


def two_ranks(monkeypatch: pytest.MonkeyPatch, *facts: dict[str, str]) -> Ranks:
    """Two ranks on the tangent axis, of which rank 0 sees the other one's facts."""
    ranks = Ranks(LaunchEnvironment(world_size=2), MeshShape(1, 2, 1), CPU)
    monkeypatch.setattr(ranks, "gather_objects", lambda value: [(0, 0, value[2] | fact) for fact in facts])
    return ranks


def with_dropout() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, CLASSES), nn.Dropout(0.5))


H100, A100 = {"GPU": "H100", "multiprocessors": "132"}, {"GPU": "A100", "multiprocessors": "108"}


@pytest.mark.parametrize(
    ("build", "mode", "facts", "line"),
    [
        (mlp, "verify", (H100, H100), ""),
        (mlp, "off", (H100, A100), ""),
        (mlp, "broadcast", (H100, A100), ""),
        (
            mlp,
            "verify",
            (H100, A100),
            "consistency.mode: verify needs ranks that are alike: rank 1 and rank 0 have GPU A100 and H100, "
            "multiprocessors 108 and 132; expected like GPUs and versions along mesh.tangent",
        ),
        (mlp, "verify", ({"method": "jvp"}, {"method": "double_backward"}), "rank 1 and rank 0 have method double_"),
        (
            with_dropout,
            "broadcast",
            (H100, A100),
            "broadcast cannot heal dropout, whose masks depend on the GPU: rank 1",
        ),
    ],
)
def test_ranks_that_are_not_alike_are_named(
    monkeypatch: pytest.MonkeyPatch, build: Any, mode: str, facts: Any, line: str
) -> None:
    problem, ranks = make_problem(image_task(build), BUCKETS), two_ranks(monkeypatch, *facts)
    if not line:
        check_alike(problem, ranks, mode, "forward")
        return
    with pytest.raises(UserError) as caught:
        check_alike(problem, ranks, mode, "forward")
    assert line in str(caught.value)


def test_what_broadcast_cannot_heal_is_refused_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = two_ranks(monkeypatch, H100, H100)
    ranks.device = torch.device("cuda", 0)
    monkeypatch.setattr(kernels, "kernels_of", lambda device: {})
    with pytest.raises(UserError, match="broadcast cannot heal estimator reverse"):
        check_alike(make_problem(image_task(mlp), BUCKETS), ranks, "broadcast", "reverse")


def test_diverged_ranks_on_gpus_hear_of_kernels() -> None:
    assert "kernels" in str(RunsDiverged(3, [1], None, on_gpus=True))
    assert "kernels" not in str(RunsDiverged(3, [1], None))


def test_precision_says_where_it_has_no_effect() -> None:
    assert Arithmetic(precision="tf32").set(CPU) == "precision: tf32 has no effect on a CPU"
    assert Arithmetic().set(CPU) == ""
