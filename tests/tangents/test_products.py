"""Hessian-vector products of both methods against differences of the native module's own gradient.

All in float64. The reference never meets `Network`: it loads the weights into the plain module and asks
`torch.autograd` for the gradient on both sides of w. Networks are smooth, so that no kink lies in between.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from problems import CPU, relative_error, smoothed_cross_entropy
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fds_dist.common.batch import Part
from fds_dist.tangents import METHODS, Network, Point, PointInputs, TrainingLoss

SEED = 5
CLASSES = 4

DIFFERENCE_TOLERANCE = 1e-8
"""Central differences with h = 1e-6: truncation is about 1e-11 (1e-9 with batch-norm) and rounding 1e-16·|g|/h = 1e-10,
relative to H·z; times ten for networks with large derivatives."""

ROUNDING = 1e-12
"""Float64 rounding through some ten layers."""


class Attention(nn.Module):
    """Multi-head self-attention, with the weights asked for or not (two code paths of PyTorch)."""

    def __init__(self, need_weights: bool) -> None:
        super().__init__()
        self.need_weights = need_weights
        self.inner = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x, x, x, need_weights=self.need_weights)[0]


class ScaledDotProduct(nn.Module):
    """In four dimensions, where PyTorch would take a fused kernel, which has no second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).unsqueeze(1).chunk(3, dim=-1)  # [B, 1 head, 6, 8]
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).squeeze(1)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.LSTM(8, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0]


class Embedded(nn.Module):
    """Reads token indices from the first entries of each row."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Embedding(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner((x[..., 0].abs() * 3).long().clamp(0, 5)).tanh()


class Checkpointed(nn.Module):
    """Runs `inner` again in each backward pass instead of keeping its activations."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=False)  # type: ignore[return-value]


def image_network(*layers: nn.Module, width: int = 3) -> nn.Module:
    """`layers` on the batch's rows as images [B, 1, 6, 8]."""
    head = (nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, CLASSES))
    return nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv2d(1, width, 3), *layers, *head)


def sequence_network(layer: nn.Module) -> nn.Module:
    """`layer` on sequences [B, 6, 8]."""
    return nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.Linear(48, CLASSES))


def vector_network(*layers: nn.Module) -> nn.Module:
    """`layers` on vectors [B, 16]."""
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 16), *layers, nn.Linear(16, CLASSES))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: image_network(nn.SiLU()),
    "batch_norm": lambda: image_network(nn.BatchNorm2d(3), nn.SiLU()),
    "batch_norm_1d": lambda: vector_network(nn.BatchNorm1d(16), nn.Tanh()),
    "batch_norm_evaluated": lambda: image_network(nn.BatchNorm2d(3, track_running_stats=False), nn.SiLU()),
    "group_norm": lambda: image_network(nn.GroupNorm(2, 4), nn.SiLU(), width=4),
    "layer_norm": lambda: vector_network(nn.LayerNorm(16), nn.GELU(), nn.LayerNorm(16)),
    "multihead_attention": lambda: sequence_network(Attention(need_weights=False)),
    "multihead_attention_weights": lambda: sequence_network(Attention(need_weights=True)),
    "scaled_dot_product": lambda: sequence_network(ScaledDotProduct()),
    "transformer": lambda: sequence_network(nn.TransformerEncoderLayer(8, 2, 16, 0.0, "gelu", batch_first=True)),
    "embedding": lambda: sequence_network(Embedded()),
    "lstm": lambda: sequence_network(Recurrent()),
    "dropout": lambda: vector_network(nn.Tanh(), nn.Dropout(0.5)),
    "dropout_2d": lambda: image_network(nn.SiLU(), nn.Dropout2d(0.5)),
    "checkpointed": lambda: vector_network(Checkpointed(nn.Sequential(nn.Linear(16, 16), nn.Tanh()))),
    "checkpointed_batch_norm": lambda: vector_network(Checkpointed(nn.Sequential(nn.BatchNorm1d(16), nn.Tanh()))),
    "checkpointed_attention": lambda: sequence_network(Checkpointed(ScaledDotProduct())),
    "checkpointed_dropout": lambda: vector_network(Checkpointed(nn.Sequential(nn.Tanh(), nn.Dropout(0.5)))),
    "tied": lambda: tied(),
    "frozen": lambda: frozen(),
}

JVP_FAILS = ("checkpointed", "checkpointed_batch_norm", "checkpointed_attention", "checkpointed_dropout")
VARIANTS = {"jvp": ("jvp", False), "jvp_vectorized": ("jvp", True), "double_backward": ("double_backward", False)}

LOSSES: dict[str, Callable[..., Tensor]] = {"cross_entropy": F.cross_entropy, "mse": F.mse_loss}


def tied() -> nn.Module:
    """Two layers that share one weight."""
    first, second = nn.Linear(16, 16), nn.Linear(16, 16)
    second.weight = first.weight
    return vector_network(nn.Tanh(), first, nn.Tanh(), second, nn.Tanh())


def frozen() -> nn.Module:
    """A first layer that is not trained."""
    network = vector_network(nn.Tanh())
    network.get_parameter("1.weight").requires_grad_(False)
    return network


@dataclass
class Case:
    """A network, its loss and a point away from its initial weights, where a stale copy of them would show."""

    native: nn.Module
    network: Network
    loss: TrainingLoss
    weights: Tensor
    theta: Tensor
    batch: tuple[Tensor, Tensor]

    def point(
        self, variant: str, weights: Tensor | None = None, theta: Tensor | None = None, seed: int = SEED
    ) -> Point:
        method, vectorize = VARIANTS[variant]
        weights = self.weights if weights is None else weights
        theta = self.theta if theta is None else theta
        buffers = self.loss.network.initial_buffers
        return METHODS[method](PointInputs(self.loss, weights, theta, buffers, Part(self.batch), vectorize, seed))

    def native_gradient(self, weights: Tensor, theta: Tensor) -> Tensor:
        """∇L by `loss.backward()` of a copy of the plain module."""
        module = copy.deepcopy(self.native)
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        nn.utils.vector_to_parameters(weights, trained)
        torch.manual_seed(SEED)
        inputs, targets = self.batch
        extra = (dict(zip(self.loss.names, theta, strict=True)),) if self.loss.names else ()
        self.loss.loss(module(inputs), targets, *extra).backward()
        return nn.utils.parameters_to_vector([parameter.grad for parameter in trained])  # type: ignore[misc]


def make_case(network: str, loss: str = "cross_entropy") -> Case:
    torch.manual_seed(0)
    native = NETWORKS[network]().double().train()
    inputs = torch.randn(8, 6, 8, dtype=torch.float64)
    labels = torch.randint(CLASSES, (8,))
    targets = labels if loss == "cross_entropy" else torch.randn(8, CLASSES, dtype=torch.float64)
    wrapped = Network(copy.deepcopy(native), torch.float64, CPU)
    weights = wrapped.initial_weights + 0.1 * torch.randn_like(wrapped.initial_weights)
    return Case(native, wrapped, TrainingLoss(wrapped, LOSSES[loss]), weights, weights.new_zeros(0), (inputs, targets))


def tangents_at(case: Case, count: int = 3) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    make = partial(torch.randn, dtype=torch.float64)
    return make(count, len(case.weights)), make(count, len(case.theta))


def differences(gradient: Callable[[Tensor, Tensor], Tensor], case: Case, dw: Tensor, dtheta: Tensor) -> Tensor:
    """Central differences of `gradient` along each tangent [C, D]."""
    h = 1e-6
    pairs = list(zip(dw, dtheta, strict=True))
    ahead = [gradient(case.weights + h * a, case.theta + h * b) for a, b in pairs]
    behind = [gradient(case.weights - h * a, case.theta - h * b) for a, b in pairs]
    return (torch.stack(ahead) - torch.stack(behind)) / (2 * h)


def usable(variant: str, network: str) -> bool:
    return variant == "double_backward" or network not in JVP_FAILS


CASES = [
    pytest.param(variant, network, loss, id=f"{variant}-{network}-{loss}")
    for network in NETWORKS
    for loss in LOSSES
    for variant in VARIANTS
    if usable(variant, network)
]


@pytest.mark.parametrize(("variant", "network", "loss"), CASES)
def test_products_equal_differences_of_the_native_gradient(variant: str, network: str, loss: str) -> None:
    case = make_case(network, loss)
    dw, dtheta = tangents_at(case)
    point = case.point(variant)
    found = point.products(dw, dtheta, {})[0]
    assert relative_error(point.gradient, case.native_gradient(case.weights, case.theta)) < ROUNDING
    reference = differences(case.native_gradient, case, dw, dtheta)
    assert relative_error(found, reference) < DIFFERENCE_TOLERANCE


@pytest.mark.parametrize(("variant", "network", "loss"), [case for case in CASES if case.values[2] == "cross_entropy"])
def test_gradient_has_the_same_bits_whatever_is_asked_for(variant: str, network: str, loss: str) -> None:
    case = make_case(network, loss)
    dw, dtheta = tangents_at(case)

    def gradient_after(count: int) -> tuple[Tensor, Tensor]:
        point = case.point(variant)
        if count:
            point.products(dw[:count], dtheta[:count], {})[0]
        return point.gradient, point.loss

    bare = gradient_after(0)
    assert bare[0].norm() > 0
    for count in (1, 3):
        assert all(map(torch.equal, gradient_after(count), bare))


@pytest.mark.parametrize("variant", ["jvp", "double_backward"])
@pytest.mark.parametrize("network", ["conv", "batch_norm", "multihead_attention", "dropout"])
def test_a_product_one_at_a_time_has_the_same_bits_in_any_company(variant: str, network: str) -> None:
    case = make_case(network)
    dw, dtheta = tangents_at(case)
    together = case.point(variant).products(dw, dtheta, {})[0]
    alone = torch.cat([case.point(variant).products(dw[row, None], dtheta[row, None], {})[0] for row in range(3)])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize("network", ["dropout", "dropout_2d"])
def test_all_tangents_see_the_same_dropout_mask(variant: str, network: str) -> None:
    case = make_case(network)
    dw, dtheta = tangents_at(case, 1)
    products = case.point(variant).products(dw.expand(3, -1), dtheta.expand(3, -1), {})[0]
    # Equal tangents give equal products only under equal masks; a batched product may round rows differently.
    assert relative_error(products[1:], products[:1].expand(2, -1)) < ROUNDING
    other_seed = case.point(variant, seed=SEED + 1)
    assert relative_error(other_seed.gradient, case.point(variant).gradient) > 0.01  # the masks do matter here


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_products_with_a_hyperparameter_inside_the_loss(variant: str, smoothing: float) -> None:
    case = make_case("batch_norm")
    case.loss = TrainingLoss(case.network, smoothed_cross_entropy, ("smoothing",))
    case.theta = torch.tensor([smoothing], dtype=torch.float64)
    dw, dtheta = tangents_at(case)
    found = case.point(variant).products(dw, dtheta, {})[0]
    reference = differences(case.native_gradient, case, dw, dtheta)
    assert relative_error(found, reference) < DIFFERENCE_TOLERANCE
    by_theta_alone = case.point(variant).products(torch.zeros_like(dw), dtheta, {})[0]
    assert by_theta_alone.norm() > 0.01 * reference.norm()  # the mixed derivative is no small part of it


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_a_loss_linear_in_the_weights_has_zero_products(variant: str) -> None:
    case = make_case("conv")
    network = Network(nn.Sequential(nn.Flatten(), nn.Linear(48, 1)).double(), torch.float64, CPU)
    case.loss = TrainingLoss(network, lambda output, target: output.mean())
    case.weights = network.initial_weights
    dw, dtheta = tangents_at(case)
    point = case.point(variant)
    assert point.products(dw, dtheta, {})[0].abs().max() == 0
    assert point.products(dw, dtheta, {})[0].shape == dw.shape
    assert point.gradient.norm() > 0
