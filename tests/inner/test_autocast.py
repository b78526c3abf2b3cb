"""`inner.precision: bf16`: forward passes under autocast, against plain autocast training and against float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from problems import conv_bn, flat, image_task, make_problem, mlp, relative_error
from torch import Tensor, nn

from fds_dist.common.faults import UserError
from fds_dist.config import load_config
from fds_dist.inner.dry_run import dry_run
from fds_dist.inner.estimators import ESTIMATORS
from fds_dist.inner.horizon import run_horizon
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerRun
from fds_dist.inner.training import Training
from fds_dist.inner.witness import Witness
from fds_dist.tangents import METHODS
from fds_dist.tangents.products import DoubleBackwardPoint, PlainPoint

BUCKETS = {"lr": [0.05, 0.04], "momentum": [0.5], "weight_decay": [0.01]}
HORIZON = 10

ROUGH = 2e-2
"""Of hypergradients by autocast: bfloat16 has 8 bits, 4e-3, averaged over the entries of some products. Met: 2e-3."""


def norms() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 4))


def problem_of(build: Callable[[], nn.Module] = conv_bn, **options: Any) -> Problem:
    problem = make_problem(image_task(build), BUCKETS, dtype=torch.float32, **options)
    return replace(problem, low=torch.bfloat16)


def hypergradients(problem: Problem, estimator: str = "forward") -> list[float]:
    return ESTIMATORS[estimator](InnerRun(problem, flat(BUCKETS), 0, HORIZON)).hypergradients


@pytest.mark.parametrize("build", [conv_bn, mlp, norms])
@pytest.mark.parametrize(
    ("estimator", "options"),
    [
        ("forward", {"method": "double_backward"}),
        ("forward", {"method": "jvp"}),
        ("forward", {"method": "jvp", "chunk_size": 4}),
        ("reverse", {}),
    ],
)
def test_hypergradients_are_roughly_those_of_float64(
    build: Callable[[], nn.Module], estimator: str, options: dict[str, Any]
) -> None:
    problem = problem_of(build, **options)
    ours, exact = hypergradients(problem, estimator), hypergradients(problem.in_float64(), estimator)
    assert 1e-5 < relative_error(ours, exact) < ROUGH  # float32 alone would be at 1e-7


def test_weights_state_and_tangents_stay_float32_and_losses_get_float32() -> None:
    seen: list[torch.dtype] = []

    def loss(output: Tensor, target: Tensor) -> Tensor:
        seen.append(output.dtype)
        seen.append((output.T @ output).dtype)  # within autocast, as in a plain training script
        return nn.functional.cross_entropy(output, target)

    problem = make_problem(image_task(mlp, loss), BUCKETS, dtype=torch.float32, method="jvp")
    run = InnerRun(replace(problem, low=torch.bfloat16), flat(BUCKETS), 0, 4)
    training, tangents = run_horizon(run, range(4))
    assert set(seen[::2]) == {torch.float32}
    assert set(seen[1::2]) == {torch.bfloat16}
    kept = [training.state.weights, tangents.weights, *training.state.optimizer, *tangents.optimizer]
    assert {tensor.dtype for tensor in kept} == {torch.float32}


def test_running_statistics_are_those_of_plain_autocast() -> None:
    witness = Witness(problem_of(val_batch_norm="running"))
    error = witness.compare_steps()
    assert error is not None and error < 1e-5  # the same kernels; statistics in bfloat16 would be off by 4e-3


@pytest.mark.parametrize("method", ["double_backward", "jvp"])
def test_the_witness_compares_with_plain_autocast_training(method: str) -> None:
    _, remarks = dry_run(problem_of(accumulate=2), method, plain_steps=3)
    text = remarks[-1]
    assert "under bf16 autocast steps to" in text and "products to" in text and "in float64" in text


class Negated(DoubleBackwardPoint):
    """A wrong sign in every product."""

    def products(self, tangents: Tensor, theta_tangents: Tensor, buffer_tangents: Any) -> Any:
        products, buffers = super().products(tangents, theta_tangents, buffer_tangents)
        return -products, buffers


class Doubled(PlainPoint):
    """A factor too many in the gradient."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.gradient = 2 * self.gradient


def test_a_wrong_sign_and_a_wrong_factor_are_seen_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = Witness(problem_of(method="jvp").in_float64(), exact=True)
    assert Witness(problem_of()).compare_low_product(exact) < 0.1
    monkeypatch.setitem(METHODS, "double_backward", Negated)
    with pytest.raises(UserError, match=r"a Hessian-vector product under autocast is off by 2"):
        Witness(problem_of()).compare_low_product(exact)
    monkeypatch.setitem(METHODS, "plain", Doubled)
    with pytest.raises(UserError, match="the gradient of"):
        Witness(problem_of()).compare_steps()


def test_dropout_and_micro_batches_go_with_it() -> None:
    def with_dropout() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 12), nn.Tanh(), nn.Dropout(0.5), nn.Linear(12, 4))

    problem = problem_of(with_dropout, accumulate=4)
    assert relative_error(hypergradients(problem), hypergradients(problem.in_float64())) < ROUGH


def test_without_it_a_step_has_the_bits_it_had() -> None:
    problem = replace(problem_of(), low=None)
    point = Training(InnerRun(problem, flat(BUCKETS), 0, 4)).point(torch.zeros(0))
    assert not torch.is_autocast_enabled("cpu")
    assert float(point.loss) == float(Training(InnerRun(problem, flat(BUCKETS), 0, 4)).point(torch.zeros(0)).loss)


def test_bf16_and_float64_contradict_each_other() -> None:
    config = {
        "task": {"name": "digits"},
        "model": {"name": "lenet"},
        "inner": {"precision": "bf16"},
        "hyperparameters": {"lr": {"init": 0.1}},
        "dtype": "float64",
    }
    with pytest.raises(UserError, match=r"inner.precision: bf16 has no effect on float64"):
        load_config(config)
