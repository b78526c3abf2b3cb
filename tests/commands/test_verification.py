"""`verify` passes on right derivatives and fails on wrong ones, also small ones."""

from __future__ import annotations

import math
import re
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from problems import ONE_RANK, HalfTanh, TensorTask, conv_bn, image_task, make_problem, mlp, regression_task
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import fds_dist
from fds_dist.commands.verify import command
from fds_dist.commands.verify.derivatives import (
    LowPrecision,
    Verification,
    compare_derivatives,
    relative_error,
    worst_error,
)
from fds_dist.common.faults import UserError
from fds_dist.inner.dry_run import dry_run
from fds_dist.schedule.space import Hyperparameter, HyperparameterSpace
from fds_dist.tangents import EXACT_METHODS, METHODS, Point
from fds_dist.tangents.optimizers import SGD

BUCKETS = {"lr": [0.2, 0.2], "momentum": [0.5], "weight_decay": [0.01]}
HORIZON = 12


class Checkpointed(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=False)  # type: ignore[return-value]


class OnceTanh(HalfTanh):
    """tanh without a second derivative."""

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # type: ignore[override]
        return gradients[0] * ctx.slope


class Once(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return OnceTanh.apply(x)


class SilentlyWrong(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(36, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(HalfTanh.apply(self.first(x.flatten(1))))


def verified(task: TensorTask, **options: Any) -> Verification:
    problem, _ = dry_run(make_problem(task, BUCKETS, **options), "auto", "reverse")
    return compare_derivatives(problem, HORIZON, ONE_RANK)


def failed(verification: Verification) -> list[str]:
    return [comparison.name for comparison in verification.comparisons if not comparison.agrees]


def test_running_statistics_that_validation_reads_have_derivatives() -> None:
    verification = verified(image_task(conv_bn), val_batch_norm="running")
    assert [comparison.name for comparison in verification.comparisons] == ["forward, jvp", "finite differences"]
    assert verification.passed, verification
    (reason,) = verification.left_out
    assert reason.startswith("forward mode by double_backward: double_backward has no tangents for buffers")


@pytest.mark.parametrize("options", [{}, {"clip_gradient": 0.05}])
def test_right_derivatives_pass(options: dict[str, Any]) -> None:
    verification = verified(image_task(conv_bn), **options)
    assert [comparison.name for comparison in verification.comparisons] == [
        "forward, jvp",
        "forward, double_backward",
        "finite differences",
    ]
    assert verification.passed, verification
    assert verification.left_out == ()
    assert len(verification.reference) == 4
    assert all(verification.reference)


@pytest.mark.parametrize("method", list(EXACT_METHODS))
def test_a_method_that_is_off_by_a_millionth_fails(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make_point = METHODS[method]

    def make_wrong_point(*arguments: Any) -> Point:
        point = make_point(*arguments)
        products = point.products

        def wrong(*tangents: Any) -> Any:
            by_weights, by_buffers = products(*tangents)
            return by_weights * (1 + 1e-6), by_buffers

        point.products = wrong  # type: ignore[method-assign]
        return point

    monkeypatch.setitem(METHODS, method, make_wrong_point)
    verification = verified(image_task(mlp))
    assert failed(verification) == [f"forward, {method}"]
    assert not verification.passed


def test_a_second_derivative_that_is_silently_wrong_fails_by_finite_differences() -> None:
    """All exact methods share PyTorch's derivative rules, and agree in the error."""
    verification = verified(image_task(SilentlyWrong))
    assert failed(verification) == ["finite differences"]
    assert not verification.passed
    assert verification.left_out[0].startswith("forward mode by jvp: jvp cannot differentiate a custom")


@pytest.mark.parametrize("once", [False, True])
def test_differences_of_gradients_are_compared_with_what_there_is(once: bool) -> None:
    task = image_task(lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 5), Once() if once else nn.Tanh()))
    task.loss = lambda output, target: F.cross_entropy(output[:, :4], target)
    problem, remarks = dry_run(make_problem(task, BUCKETS), "auto" if once else "difference")
    assert any("products by difference of gradients are right to about" in remark for remark in remarks)
    verification = compare_derivatives(problem, HORIZON, ONE_RANK)
    assert verification.passed and verification.by_difference == once
    names = ["forward, jvp", "forward, double_backward", "forward, difference", "finite differences"]
    expected = names[-1:] if once else names
    assert [comparison.name for comparison in verification.comparisons] == expected


def test_reverse_mode_without_second_derivatives_is_refused() -> None:
    task = image_task(lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 4), Once()))
    with pytest.raises(
        UserError, match=r"estimator: reverse needs second derivatives .*OnceTanh.* expected estimator=forward"
    ):
        dry_run(make_problem(task, BUCKETS), "auto", "reverse")


DIGITS_IN_BF16: dict[str, Any] = {
    "task": {"name": "digits", "batch_size": 64},
    "model": {"name": "mlp", "hidden": [8]},
    "hyperparameters": {"lr": {"init": 0.05, "step": 0.05, "buckets": 2}, "momentum": {"init": 0.5, "step": 0.1}},
    "inner": {"precision": "bf16"},
}


@pytest.mark.parametrize("exact", [True, False])
def test_the_error_of_autocast_is_stated_beside_comparisons_without_it(
    exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the user's code cannot compute in float64, and the comparisons are in float32."""
    if not exact:
        monkeypatch.setattr(command, "raised_to_float64", lambda *_, **__: nullcontext(("float32", False)))
    result = fds_dist.verify(DIGITS_IN_BF16, steps=HORIZON)
    verification, low, kind = result.verification, result.verification.low, "float64" if exact else "float32"
    assert verification.passed, verification  # autocast would miss the 1e-2 that float32 is allowed between methods
    assert result.built.config.dtype == kind and result.built.problem.low is None
    assert low is not None and low.same_signs == 3
    assert 1e-4 < low.error < 2e-2  # bfloat16 rounds to 4e-3, float32 alone would be at 1e-7
    assert 1 - low.error**2 <= low.cosine < 1  # the sine of the angle is at most the relative error
    stated = rf"bf16, against {kind} without it: relative error \S+e-\d+, signs 3 of 3, cosine 0\.99"
    assert re.search(stated, " ".join(result._repr_html_().split()))


def test_the_error_of_float32_is_stated_and_of_float64_nothing() -> None:
    result = fds_dist.verify(DIGITS_IN_BF16, ["inner.precision=fp32"], steps=HORIZON)
    low, text = result.verification.low, " ".join(result._repr_html_().split())
    assert low is not None and low.same_signs == 3 and 0 < low.error < 1e-5  # some 10² operations that round to 1e-7
    assert "in float32, against float64: relative error" in text and "bf16" not in text and "amplifies" not in text
    exact = fds_dist.verify(DIGITS_IN_BF16, ["inner.precision=null", "dtype=float64"], steps=2)
    assert exact.verification.low is None and "float32" not in exact._repr_html_()


def logistic_map_loss(output: Tensor, target: Tensor) -> Tensor:
    """Its gradient step of rate 1 is the logistic map w → 4w(1 − w), which doubles an error at each step."""
    return (target * (4 / 3 * output**3 - 3 / 2 * output**2)).mean()


def one_weight() -> nn.Module:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 0.3)
    return model


def test_a_run_that_amplifies_rounding_is_named() -> None:
    """2^16 · 6e-8 = 4e-3 in the weights, more in the derivatives, of which float64 keeps ten digits."""
    ones, one = torch.ones(16, 1), torch.ones(1, 1)
    task = TensorTask(one_weight, (ones, ones), (one, one), logistic_map_loss, batch_size=1)
    config = {"hyperparameters": {"lr": {"init": 1.0, "step": 0.1, "buckets": 2}}, "inner": {"epochs": 1}}
    result = fds_dist.verify(config, task=task)
    low = result.verification.low
    assert low is not None and low.error > 1e-2
    assert "smaller learning rates, inner.clip_gradient" in " ".join(result._repr_html_().split())


def test_error_signs_and_cosine_of_two_vectors() -> None:
    low = LowPrecision.between([1.0, -1.0, 0.0, 2.0], [1.0, 1.0, 0.0, 2.0])
    assert (low.error, low.same_signs, low.cosine) == pytest.approx((2 / math.sqrt(6), 3, 2 / 3))
    nothing = LowPrecision.between([math.nan, 1.0], [1.0, 1.0])
    assert nothing.same_signs == 1 and math.isinf(nothing.error) and math.isnan(nothing.cosine)


def test_what_cannot_be_compared_is_named() -> None:
    verification = verified(image_task(lambda: Checkpointed(mlp())))
    assert verification.passed
    assert len(verification.left_out) == 1
    assert "jvp cannot differentiate activation checkpointing" in verification.left_out[0]


def test_a_diverging_run_is_not_verified() -> None:
    problem = make_problem(regression_task(), {"lr": [1e30]})
    assert not compare_derivatives(problem, HORIZON, ONE_RANK).passed


def test_nothing_compared_is_not_passed() -> None:
    assert not Verification(1, [], [], (), ()).passed


def test_point_is_the_initial_values_or_one_step_away_from_zero() -> None:
    learned = (
        Hyperparameter("lr", init=0.0, step=0.1, buckets=2),
        Hyperparameter("momentum", init=0.9, step=0.1),
        Hyperparameter("weight_decay", init=0.0, step=0.5, bounds=(0.0, 0.1)),
    )
    problem = make_problem(image_task(mlp), BUCKETS)
    object.__setattr__(problem, "space", HyperparameterSpace(learned))
    assert problem.trial_values() == [0.1, 0.1, 0.9, 0.1]


class TiesInMomentum(SGD):
    """An optimizer that names a hyperparameter at whose equal values it has no derivative."""

    ties = ("momentum",)


def test_equal_values_are_told_apart_where_the_optimizer_has_no_derivative_at_them() -> None:
    buckets = {"lr": [0.1, 0.1], "momentum": [0.5, 0.5]}
    plain, tied = (make_problem(image_task(mlp), buckets, optimizer=rule) for rule in (SGD(), TiesInMomentum()))
    assert plain.trial_values() == [0.1, 0.1, 0.5, 0.5]
    assert tied.trial_values()[:2] == [0.1, 0.1] and len(set(tied.trial_values()[2:])) == 2


@pytest.mark.parametrize(
    ("found", "reference", "expected"),
    [
        ([3.0, 4.5], [3.0, 4.0], 0.1),
        ([0.0], [0.0], 0.0),
        ([1e-9], [0.0], math.inf),
        ([math.nan], [1.0], math.inf),
        ([1.0], [math.nan], math.inf),
        ([math.inf], [math.inf], math.inf),
    ],
)
def test_relative_error(found: list[float], reference: list[float], expected: float) -> None:
    assert relative_error(found, reference) == pytest.approx(expected)


def test_a_large_hyperparameter_does_not_hide_the_error_of_a_small_one() -> None:
    space = make_problem(image_task(mlp), {"lr": [0.1, 0.1], "momentum": [0.5]}).space
    assert worst_error(space, [300.0, 400.0, 1.1], [300.0, 400.0, 1.0]) == pytest.approx(0.1)
    # What is zero but for rounding is compared with a ten-thousandth of the whole.
    assert worst_error(space, [300.0, 400.0, 1e-13], [300.0, 400.0, 0.0]) == pytest.approx(1e-13 / 0.05)
