"""Products and hypergradients by differences of gradients, against exact ones and against reverse mode."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from problems import CPU, flat, image_task, images, make_problem, mlp, relative_error, smoothed_task
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fds_dist.common.batch import Part
from fds_dist.inner.estimators import estimate_forward, estimate_reverse
from fds_dist.inner.run import InnerRun
from fds_dist.tangents import METHODS, Network, Point, PointInputs, TrainingLoss

SEED = 5
FLOAT64, FLOAT32 = 1e-8, 2e-3
"""A third of η^⅓ as relative step: (η^⅓/3)²/6 of truncation and 3·η^⅔ of rounding are 1e-10 and 7e-5 (η = 2e-16 and
1e-7), times 30 for third derivatives of small networks beside random tangents."""


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(6, 18)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).chunk(3, dim=-1)
        return F.scaled_dot_product_attention(q, k, v)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.LSTM(6, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.flatten(1, 2))[0]


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=False)  # type: ignore[return-value]


def on_images(*layers: nn.Module, width: int = 36) -> nn.Module:
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width, 4))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "conv_bn": lambda: on_images(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.SiLU(), width=48),
    "lstm": lambda: on_images(Recurrent()),
    "attention": lambda: on_images(Attention()),
    "checkpointed": lambda: on_images(Checkpointed(), nn.Dropout(0.5)),
    "dropout": lambda: on_images(nn.Flatten(), nn.Linear(36, 36), nn.Tanh(), nn.Dropout(0.5)),
}
KINKS: dict[str, Callable[[], nn.Module]] = {
    name: partial(lambda layer: on_images(nn.Flatten(), nn.Linear(36, 36), layer()), layer)
    for name, layer in {
        "relu": nn.ReLU,
        "relu_in_place": lambda: nn.ReLU(inplace=True),
        "leaky_relu": nn.LeakyReLU,
        "relu6": nn.ReLU6,
        "hardtanh": nn.Hardtanh,
        "elu": lambda: nn.ELU(2.0),
        "selu": nn.SELU,
        "prelu": nn.PReLU,
        "hardsigmoid": nn.Hardsigmoid,
    }.items()
} | {
    "max_pool": lambda: on_images(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2, stride=1), width=36),
    "adaptive_max_pool": lambda: on_images(nn.Conv2d(1, 4, 3), nn.AdaptiveMaxPool2d(3), width=36),
    "abs": lambda: on_images(nn.Conv2d(1, 4, 3, padding=1), Apply(torch.abs), width=144),
    "clamp": lambda: on_images(nn.Conv2d(1, 4, 3, padding=1), Apply(lambda x: x.clamp(min=0.1)), width=144),
    "maximum": lambda: on_images(nn.Conv2d(1, 4, 3, padding=1), Apply(lambda x: torch.maximum(x, x.flip(1)))),
    "where": lambda: on_images(nn.Conv2d(1, 4, 3, padding=1), Apply(lambda x: torch.where(x > 0, x, x.sin() / 2))),
}
for wide in ("maximum", "where"):
    KINKS[wide] = partial(lambda make: _widened(make()), KINKS[wide])


class Apply(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def _widened(network: nn.Module) -> nn.Module:
    network[-1] = nn.Linear(144, 4)  # type: ignore[index, operator]
    return network


def point_of(build: Callable[[], nn.Module], method: str, dtype: torch.dtype = torch.float64) -> Point:
    torch.manual_seed(0)
    network = Network(build().double(), dtype, CPU, twice=method not in ("difference", "plain"))
    network.train()
    batch = network.cast(Part(images(16)))
    weights = network.initial_weights
    loss = TrainingLoss(network, F.cross_entropy)
    return METHODS[method](PointInputs(loss, weights, weights.new_zeros(0), network.initial_buffers, batch, seed=SEED))


def product(point: Point, width: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    torch.manual_seed(1)
    tangent = torch.randn(1, width, dtype=torch.float64).to(dtype) * scale
    return point.products(tangent, tangent.new_zeros(1, 0), {})[0] / scale


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, FLOAT64), (torch.float32, FLOAT32)])
@pytest.mark.parametrize("name", [*NETWORKS, *KINKS])
def test_products_are_those_of_an_exact_method(name: str, dtype: torch.dtype, bound: float) -> None:
    build = {**NETWORKS, **KINKS}[name]
    exact = point_of(build, "double_backward")
    width = len(exact.gradient)
    expected = product(exact, width, torch.float64)
    for scale in (1e-6, 1.0, 1e6):  # the step follows the tangent's size
        found = product(point_of(build, "difference", dtype), width, dtype, scale)
        assert relative_error(found, expected) < bound


@pytest.mark.parametrize("name", [*NETWORKS, *KINKS])
def test_the_step_itself_has_the_bits_of_a_plain_one(name: str) -> None:
    build = {**NETWORKS, **KINKS}[name]
    found, plain = (point_of(build, method) for method in ("difference", "plain"))
    assert torch.equal(found.gradient, plain.gradient) and torch.equal(found.loss, plain.loss)
    assert all(torch.equal(found.buffers[name], plain.buffers[name]) for name in plain.buffers)


def gated(x: Tensor) -> Tensor:
    return x.relu() * x.sigmoid()


def test_kinks_in_what_is_compiled_are_held() -> None:
    compiled = torch.compile(gated, backend="aot_eager")
    plain, found = (
        point_of(lambda f=f: on_images(nn.Flatten(), nn.Linear(36, 36), Apply(f)), "difference")
        for f in (gated, compiled)
    )
    width = len(plain.gradient)
    for _ in range(2):  # nothing of the first product is compiled into the second
        assert relative_error(product(found, width, torch.float64), product(plain, width, torch.float64)) < 1e-12


def test_a_zero_tangent_costs_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    point = point_of(mlp, "difference")
    width = len(point.gradient)
    monkeypatch.setattr(Network, "__call__", lambda *_: pytest.fail("a gradient was taken"))
    zero = torch.zeros(2, width, dtype=torch.float64)
    assert torch.equal(point.products(zero, zero[:, :0], {})[0], zero)


BUCKETS = {"lr": [0.2, 0.1], "momentum": [0.5], "weight_decay": [0.02]}


def relu_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 4)
    )


@pytest.mark.parametrize(
    ("task", "buckets", "options"),
    [
        (image_task, BUCKETS, {}),
        (partial(image_task, relu_network), BUCKETS, {"clip_gradient": 0.2}),
        (smoothed_task, {"lr": [0.2], "smoothing": [0.1, 0.0]}, {}),
    ],
    ids=["batch_norm", "kinks", "loss_hyperparameters"],
)
def test_hypergradients_equal_reverse_mode(task: Callable[[], Any], buckets: Any, options: dict[str, Any]) -> None:
    horizon = 20

    def run(method: str, dtype: torch.dtype = torch.float64) -> InnerRun:
        problem = make_problem(task(), buckets, dtype=dtype, **options).by(method)
        return InnerRun(problem, flat(buckets), 0, horizon)

    expected = estimate_reverse(run("double_backward")).hypergradients
    # The error of a product, amplified by some steps of training: the factor 30 above, once more.
    assert relative_error(estimate_forward(run("difference")).hypergradients, expected) < 1e-7
    expected = estimate_reverse(run("double_backward", torch.float32)).hypergradients
    assert relative_error(estimate_forward(run("difference", torch.float32)).hypergradients, expected) < 1e-2
