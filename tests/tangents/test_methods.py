"""Operators that defeat a method: the error names the operator and the method that works."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from problems import CPU
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fds_dist.common.batch import Part
from fds_dist.common.faults import UserError
from fds_dist.tangents import EXACT_METHODS, Network, TrainingLoss
from fds_dist.tangents.methods import TrialPoint, choose_method, default_method, difference_error, probe

CLASSES = 4
Loss = Callable[..., Tensor]


class Tanh(torch.autograd.Function):
    """Can be differentiated twice backward, but gives `torch.func` nothing to go by."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradients[0] * (1 - x.tanh() ** 2)


class OnceTanh(Tanh):
    """PyTorch gives both methods a wrong second derivative of this, without an error."""

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # type: ignore[override]
        return Tanh.backward(ctx, *gradients)


class TanhWithoutJvp(torch.autograd.Function):
    """Fits `torch.func.grad`, but has no forward-mode derivative."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:  # type: ignore[override]
        return x.tanh()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    backward = Tanh.backward


class Apply(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Distances(nn.Module):
    """Distances to prototypes: `torch.cdist` has no second derivative at all."""

    def __init__(self) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(CLASSES, 6))

    def forward(self, x: Tensor) -> Tensor:
        return -torch.cdist(x, self.prototypes)


def network_with(function: Callable[..., Tensor]) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), Apply(function), nn.Linear(5, CLASSES))


def checkpointed_tanh(x: Tensor) -> Tensor:
    return checkpoint(torch.tanh, x, use_reentrant=False)  # type: ignore[return-value]


def mse_of_indices(output: Tensor, target: Tensor) -> Tensor:
    """Makes its float targets within the loss, where no caller can give them a zero tangent."""
    return F.mse_loss(output, F.one_hot(target, CLASSES).to(output))


@dataclass
class Case:
    module: Callable[[], nn.Module]
    culprit: str
    loss: Loss = F.cross_entropy
    vectorize: bool = False


ONE_METHOD_FAILS = {
    "checkpointing": Case(lambda: network_with(checkpointed_tanh), "activation checkpointing"),
    "mse_of_indices": Case(lambda: network_with(torch.tanh), "mse_loss", mse_of_indices),
    "custom_function": Case(lambda: network_with(Tanh.apply), r"custom autograd\.Function at \S*test_methods\.py:\d+"),
    "no_jvp": Case(lambda: network_with(TanhWithoutJvp.apply), r"custom autograd\.Function at \S*test_methods\.py:\d+"),
    "no_vmap": Case(lambda: network_with(TanhWithoutJvp.apply), "TanhWithoutJvp", vectorize=True),
    "random_under_vmap": Case(lambda: nn.Sequential(nn.Linear(6, 4), nn.RReLU()), "rrelu", vectorize=True),
}
BOTH_METHODS_FAIL = {
    "cdist": Case(Distances, "cdist"),
    "embedding_bag": Case(
        lambda: nn.Sequential(Apply(lambda x: (x > 0).long()), nn.EmbeddingBag(2, CLASSES)), "embedding_bag"
    ),
    "once_differentiable": Case(lambda: network_with(OnceTanh.apply), r"OnceTanh \(marked @once_differentiable\)"),
}


def point_of(case: Case) -> TrialPoint:
    torch.manual_seed(0)
    network = Network(case.module(), torch.float64, CPU)
    network.train()
    weights = network.initial_weights
    part = Part((torch.randn(8, 6, dtype=torch.float64), torch.randint(CLASSES, (8,))))
    loss = TrainingLoss(network, case.loss)
    return TrialPoint(loss, weights, weights.new_zeros(0), network.initial_buffers, part, case.vectorize)


@pytest.mark.parametrize("name", ONE_METHOD_FAILS)
def test_error_names_the_operator_and_the_method_that_works(name: str) -> None:
    case = ONE_METHOD_FAILS[name]
    message = rf"tangents\.method: jvp cannot differentiate .*{case.culprit}.* twice; expected .*=double_backward"
    with pytest.raises(UserError, match=message) as caught:
        choose_method("jvp", point_of(case))
    assert len(str(caught.value).splitlines()) == 1
    assert choose_method("double_backward", point_of(case))[0] == "double_backward"


@pytest.mark.parametrize("requested", ["jvp", "double_backward"])
@pytest.mark.parametrize("name", BOTH_METHODS_FAIL)
def test_error_says_where_neither_method_works(name: str, requested: str) -> None:
    case = BOTH_METHODS_FAIL[name]
    message = rf"neither method can differentiate {case.culprit}.* twice.*; expected .*tangents\.method=difference"
    with pytest.raises(UserError, match=message):
        choose_method(requested, point_of(case))


@pytest.mark.parametrize("name", BOTH_METHODS_FAIL)
def test_auto_takes_differences_where_neither_method_works(name: str) -> None:
    case = BOTH_METHODS_FAIL[name]
    method, remark = choose_method("auto", point_of(case))
    assert method == "difference"
    assert re.search(rf"by difference of gradients: neither method can differentiate {case.culprit}.* twice", remark)
    # Twice cbrt(2e-16)² times the curvature of a tiny network, with a factor of 100 for it.
    assert difference_error(point_of(case)) < 1e-8


def test_kinks_within_activation_checkpointing_are_refused_by_name() -> None:
    case = Case(lambda: network_with(lambda x: checkpoint(torch.relu, x, use_reentrant=False)), "")  # type: ignore[arg-type, return-value]
    with pytest.raises(UserError, match=r"tangents\.method: difference cannot hold the kinks .* checkpointing"):
        difference_error(point_of(case))


@pytest.mark.parametrize("name", ONE_METHOD_FAILS)
def test_auto_switches_with_a_remark(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = ONE_METHOD_FAILS[name]
    # `auto` begins with jvp on a GPU; here there may be none.
    monkeypatch.setattr("fds_dist.tangents.methods.default_method", lambda device: "jvp")
    method, remark = choose_method("auto", point_of(case))
    assert method == "double_backward"
    assert remark.startswith("tangents by double_backward: jvp cannot differentiate")


@pytest.mark.parametrize("requested", ["jvp", "double_backward", "auto"])
def test_no_remark_where_nothing_is_wrong(requested: str) -> None:
    case = Case(lambda: network_with(torch.tanh), "")
    expected = default_method(CPU) if requested == "auto" else requested
    assert choose_method(requested, point_of(case)) == (expected, "")


def test_remark_on_a_custom_function_that_only_verification_can_judge() -> None:
    method, remark = choose_method("auto", point_of(Case(lambda: network_with(Tanh.apply), "")))
    assert method == "double_backward"
    assert remark.startswith("Tanh: run `fds-dist verify`")


def test_no_remark_on_functions_of_this_package() -> None:
    network = network_with(nn.BatchNorm1d(5))
    assert choose_method("auto", point_of(Case(lambda: network, ""))) == ("double_backward", "")


def test_a_method_that_passes_the_probe_gives_products() -> None:
    for method in EXACT_METHODS:
        assert probe(method, point_of(Case(lambda: network_with(torch.tanh), ""))) == ""


def test_a_network_that_fails_by_itself_is_not_blamed_on_derivatives() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        choose_method("auto", point_of(Case(lambda: nn.Linear(7, CLASSES), "")))


def test_probing_leaves_the_running_statistics_alone() -> None:
    point = point_of(Case(lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)), ""))
    before = {name: buffer.clone() for name, buffer in point.buffers.items()}
    choose_method("auto", point)
    assert all(torch.equal(point.buffers[name], before[name]) for name in before)
