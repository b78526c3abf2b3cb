"""Networks beyond the paper's: exact hypergradients, and activation checkpointing that changes memory alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from problems import ONE_RANK, TensorTask, flat, make_problem, relative_error
from torch import Tensor, nn

from fds_dist.commands.verify.derivatives import compare_derivatives
from fds_dist.common.batch import Part
from fds_dist.common.memory import peak_bytes
from fds_dist.inner.estimators import estimate_forward
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerRun
from fds_dist.models import build_model
from fds_dist.tangents.methods import TrialPoint, choose_method

BUCKETS = {"lr": [0.01], "momentum": [0.5]}
SMALL_VIT = {"patch_size": 4, "num_layers": 2, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 16}


def color_images(count: int, side: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(count)
    x = torch.randn(count, 3, side, side, generator=random, dtype=torch.float64)
    return x, torch.randint(4, (count,), generator=random)


def problem(name: str, side: int, batch: int = 2, steps: int = 2, **options: Any) -> Problem:
    """A problem of `steps` steps per epoch with a network of ours or torchvision's, in float64."""

    def build() -> nn.Module:
        return build_model(name, options, input_shape=(3, side, side), classes=4, seed=0)

    task = TensorTask(build, color_images(batch * steps, side), color_images(batch, side), batch_size=batch)
    return make_problem(task, BUCKETS)


@pytest.mark.parametrize(
    ("name", "side", "batch", "options"),
    [
        ("vit_b_16", 8, 2, SMALL_VIT),
        pytest.param("vit_b_16", 16, 2, {"num_layers": 2}, marks=pytest.mark.slow),
        # Its last stage sees one pixel of each image: batch-norm over two values is too steep for finite differences.
        pytest.param("resnet18", 8, 8, {}, marks=pytest.mark.slow),
    ],
)
def test_hypergradients_are_verified(name: str, side: int, batch: int, options: dict[str, Any]) -> None:
    verification = compare_derivatives(problem(name, side, batch, **options), 2, ONE_RANK)
    assert verification.passed, verification
    assert len(verification.comparisons) == 3  # both methods and finite differences


@pytest.mark.parametrize(
    ("name", "weights"),
    [("wrn-28-10", 36_479_194), ("resnet18", 11_173_962), ("resnet50", 23_520_842), ("vit_b_16", 85_152_010)],
)
def test_networks_have_the_weights_that_their_names_say(name: str, weights: int) -> None:
    """WRN-28-10's 36.5 million as in its paper; torchvision's with 10 classes, and stems and patches for 32 pixels."""
    model = build_model(name, {}, input_shape=(3, 32, 32), classes=10, seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == weights


@pytest.mark.parametrize(
    ("name", "side", "options"),
    [("wrn-16-1", 16, {"dropout": 0.2}), ("vit_b_16", 8, SMALL_VIT | {"dropout": 0.2})],
)
def test_checkpointing_changes_no_hypergradient_and_saves_memory(name: str, side: int, options: dict[str, Any]) -> None:
    plain, sparing = (problem(name, side, 8, 3, checkpointing=on, **options) for on in (False, True))
    expected, found = (estimate_forward(InnerRun(each, flat(BUCKETS), 0, 3)) for each in (plain, sparing))
    # Recomputed activations have the same bits; sums of gradients over paths may come in another order.
    assert relative_error(found.hypergradients, expected.hypergradients) < 1e-12
    assert found.val_loss == pytest.approx(expected.val_loss, rel=1e-14)

    def gradient(of: Problem) -> int:
        network = of.network(0)
        part = network.cast(Part(next(of.batches(0))))

        def run() -> None:
            leaf = network.initial_weights.detach().requires_grad_()
            loss, _ = of.training_loss(network)(leaf, leaf.new_zeros(0), network.initial_buffers, part)
            network.differentiate(loss, leaf)

        return peak_bytes(run, of.device)

    assert gradient(sparing) < 0.8 * gradient(plain)


def test_a_checkpointed_network_is_differentiated_by_the_method_that_can() -> None:
    of = problem("wrn-16-1", 8, checkpointing=True)
    network = of.network(0)
    part = network.cast(Part(next(of.batches(0))))
    weights = network.initial_weights
    point = TrialPoint(of.training_loss(network), weights, weights.new_zeros(0), network.initial_buffers, part)
    method, _ = choose_method("auto", point)
    assert method == "double_backward"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wrn-28-10", "resnet50", "vit_b_16"])
def test_large_networks_take_a_forward_mode_step(name: str) -> None:
    """36, 24 and 85 million weights: one step with two tangents in float32."""
    of = problem(name, 32, 2, 1)
    of = type(of)(**{**vars(of), "dtype": torch.float32})
    estimate = estimate_forward(InnerRun(of, flat(BUCKETS), 0, 1))
    assert all(torch.isfinite(torch.tensor(estimate.hypergradients)))
    assert estimate.hypergradients[0] != 0
