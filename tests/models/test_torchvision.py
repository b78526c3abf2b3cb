"""torchvision's networks: fitted to the task, differentiable twice, drawn from the seed, and clear about bad input."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fds_dist.common import vision
from fds_dist.common.batch import Part
from fds_dist.common.faults import UserError
from fds_dist.common.randomness import seeded
from fds_dist.common.vision import import_torchvision
from fds_dist.models import build_model
from fds_dist.models.torchvision_models import torchvision_names
from fds_dist.tangents import METHODS, Network, PointInputs, TrainingLoss

COLOR, DIGIT = (3, 32, 32), (1, 28, 28)
TINY_VIT = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 8}


def build(name, input_shape=COLOR, classes=10, seed=0, **options) -> Any:
    return build_model(name, options, input_shape=input_shape, classes=classes, seed=seed)


def faults_of(function, *args, **kwargs):
    with pytest.raises(UserError) as error:
        function(*args, **kwargs)
    return {fault.key: str(fault) for fault in error.value.faults}


def convolutions(model):
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]


# The import


def test_torchvision_is_imported_with_what_we_use():
    torchvision = import_torchvision()
    assert callable(torchvision.models.resnet18) and callable(torchvision.datasets.CIFAR10)


@pytest.mark.parametrize("missing", [False, True])
def test_operators_are_declared_only_where_they_do_not_load(monkeypatch, missing):
    declared = []

    def import_module(name):
        if missing and not declared:
            raise RuntimeError("operator torchvision::nms does not exist")
        return name

    monkeypatch.setattr(importlib, "import_module", import_module)
    monkeypatch.setattr(vision, "_declare_operators", lambda: declared.append(True))
    assert str(import_torchvision.__wrapped__()) == "torchvision"
    assert len(declared) == missing


@pytest.mark.parametrize("error", [ModuleNotFoundError("no torchvision"), RuntimeError("another CUDA version")])
def test_other_failures_of_the_import_are_told(monkeypatch, error):
    def import_module(name):
        raise error

    monkeypatch.setattr(importlib, "import_module", import_module)
    (message,) = faults_of(import_torchvision.__wrapped__).values()
    assert str(error) in message and torch.__version__ in message


# Fitting to the task


@pytest.mark.parametrize("shape", [COLOR, DIGIT])
@pytest.mark.parametrize(
    ("name", "options"),
    [("shufflenet_v2_x0_5", {}), ("squeezenet1_1", {}), ("mobilenet_v2", {"width_mult": 0.1}), ("vit_b_16", TINY_VIT)],
)
def test_one_row_of_logits_per_image(name, options, shape):
    model = build(name, shape, classes=7, **options)
    assert model.training
    assert model(torch.rand(2, *shape)).shape == (2, 7)


def test_resnets_keep_the_resolution_of_small_images():
    small, large = build("resnet18"), build("resnet18", (3, 64, 64))
    kinds = [(type(m.get_submodule("maxpool")), convolutions(m)[0].kernel_size) for m in (small, large)]
    assert kinds == [(nn.Identity, (3, 3)), (nn.MaxPool2d, (7, 7))]
    assert sum(p.numel() for p in small.parameters()) == 11_173_962  # the count known for CIFAR-10


def test_the_new_first_convolution_keeps_the_size_of_its_outputs():
    usual, gray = (build("resnet18", shape) for shape in ((3, 64, 64), (1, 64, 64)))
    images = torch.randn(4, 1, 64, 64)
    deviations = [convolutions(m)[0](x).std() for m, x in ((usual, torch.randn(4, 3, 64, 64)), (gray, images))]
    # Deviations of 64 × 49 and of 64 × 147 normal weights: each known to about 2 %.
    assert deviations[1].item() == pytest.approx(deviations[0].item(), rel=0.1)


@pytest.mark.parametrize(("side", "patch"), [(32, 4), (28, 4), (14, 2), (8, 1), (64, 8), (112, 16), (13, 1)])
def test_small_images_get_small_patches(side, patch):
    assert build("vit_b_16", (3, side, side), **TINY_VIT).conv_proj.kernel_size == (patch, patch)


def test_options_reach_torchvision():
    model = build("vit_b_16", patch_size=16, **TINY_VIT)
    assert model.conv_proj.kernel_size == (16, 16) and len(model.encoder.layers) == 1
    dropouts = [m.p for m in build("squeezenet1_1", dropout=0.25).modules() if isinstance(m, nn.Dropout)]
    assert dropouts == [0.25]


# Weights


@pytest.mark.parametrize("init", ["default", "xavier", "kaiming", "orthogonal"])
@pytest.mark.parametrize(("name", "options"), [("squeezenet1_1", {}), ("vit_b_16", TINY_VIT)])
def test_weights_are_a_function_of_the_seed_alone(name, options, init):
    state = torch.get_rng_state()
    first, again, other = (
        nn.utils.parameters_to_vector(build(name, DIGIT, seed=seed, init=init, **options).parameters())
        for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_initializations_reach_attention():
    model = build("vit_b_16", init="orthogonal", **TINY_VIT)
    attention = next(m for m in model.modules() if isinstance(m, nn.MultiheadAttention))
    for weight in (attention.in_proj_weight, attention.out_proj.weight):
        # float32 rounding over 24 terms
        torch.testing.assert_close(weight.T @ weight, torch.eye(8), rtol=0, atol=1e-5)
    assert not attention.in_proj_bias.any()
    assert torch.equal(model.get_parameter("encoder.ln.weight"), torch.ones(8))


# Derivatives


@pytest.mark.parametrize(
    ("name", "options", "side"),
    [
        ("shufflenet_v2_x0_5", {}, 16),  # ReLU in place
        ("mobilenet_v3_small", {}, 16),  # hard sigmoid and hard swish
        ("vit_b_16", TINY_VIT, 14),
        pytest.param("resnet18", {}, 16, marks=pytest.mark.slow),  # ReLU and sums in place
    ],
)
def test_both_methods_differentiate_twice(name, options, side):
    network = Network(build(name, (3, side, side), 4, **options), torch.float64, torch.device("cpu"))
    network.train()
    w, none = network.initial_weights, torch.zeros(0, dtype=torch.float64)
    loss = TrainingLoss(network, F.cross_entropy)
    with seeded(0):
        part = Part((torch.randn(4, 3, side, side, dtype=torch.float64), torch.arange(4)))
        tangents = torch.randn(1, len(w), dtype=torch.float64)
        vectorized, plain, reverse = (
            METHODS[method](PointInputs(loss, w, none, network.initial_buffers, part, vectorize))
            for method, vectorize in (("jvp", True), ("jvp", False), ("double_backward", False))
        )
        expected = reverse.products(tangents, none[None], {})[0]
        assert expected.norm() > 0
        for point in (vectorized, plain):
            for found, right in (
                (point.products(tangents, none[None], {})[0], expected),
                (point.gradient, reverse.gradient),
            ):
                # Float64 rounding through some 100 layers of batch-norm over four samples.
                assert (found - right).norm() < 1e-9 * right.norm()


def test_the_hard_sigmoid_written_out_is_the_same_function():
    written = next(m for m in build("mobilenet_v3_small").modules() if type(m).__name__ == "_HardSigmoid")
    x = torch.linspace(-5, 5, 101)
    torch.testing.assert_close(written(x), F.hardsigmoid(x), rtol=0, atol=1e-6)  # float32 rounding


# Bad input


def test_an_unknown_name_is_compared_with_all_names():
    assert {"resnet18", "vit_b_16", "mobilenet_v3_small"} <= set(torchvision_names())
    assert "did you mean resnet18" in faults_of(build, "resnet81")["model.name"]
    assert "did you mean mobilenet_v3_small" in faults_of(build, "mobilenetv3_small")["model.name"]


@pytest.mark.parametrize(
    ("name", "options", "key", "words"),
    [
        ("resnet18", {"width_per_grup": 3}, "model.width_per_grup", "did you mean model.width_per_group"),
        ("resnet18", {"weights": "DEFAULT"}, "model.weights", "unknown key"),
        ("resnet18", {"block": 3}, "model.block", "unknown key"),
        ("resnet18", {"groups": 2}, "model", "groups=1"),
        ("squeezenet1_1", {"dropout": "much"}, "model", "squeezenet1_1"),
        ("vit_b_16", {"patch_size": 5}, "model", "patch size"),
        ("vit_b_16", {"input_shape": [3, 32, 28]}, "model.input_shape", "square"),
        ("alexnet", {}, "model.input_shape", "3×32×32 does not fit alexnet"),
        ("resnet18", {"input_shape": [192]}, "model.input_shape", "192"),
    ],
)
def test_bad_options_and_images_are_told(name, options, key, words):
    assert words in faults_of(build, name, **options)[key]
