"""Every operator of `torch.nn`: its second derivative by each method is right, or the method is refused by name.

| operator | jvp | jvp, batched | double backward, reverse |
|---|---|---|---|
| in no set below | right | right | right |
| `REFUSED_BY_JVP` | refused | refused | right |
| `REFUSED_WHEN_BATCHED` | right | refused | right |
| `REFUSED_BY_DOUBLE_BACKWARD` | right | right | refused |
| `REFUSED` | refused | refused | refused |

`WRITTEN_OUT` are right since `second_derivatives` computes them by elementary operations.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import operator_functions
import operator_layers
import pytest
import torch
from operator_layers import layer, of, r
from operators import VARIANTS, Build, Layout, Operator, Point, built, channels_last, transposed
from problems import relative_error
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, get_overridable_functions

TABLE: dict[str, Build] = {}
for section in (*operator_layers.SECTIONS, *operator_functions.SECTIONS):
    TABLE |= section

WRITTEN_OUT = {name for name in TABLE if name.startswith("weight_norm")} - {"weight_norm_called"} | {
    *("Hardsigmoid", "Hardsigmoid_inplace")
}
REFUSED_BY_JVP = {
    *("cholesky_inverse", "triangular_solve", "scatter_reduce_prod"),  # which jvp gets wrong without an error
    *("checkpoint", "weight_norm_recomputed", "weight_norm_hook_recomputed"),
    *(name for name in TABLE if name.startswith(("huber_loss", "soft_margin_loss", "grid_sample"))),
    *("affine_grid", "conv_tbc", "index_reduce", "LSTM_packed"),
    "mse_loss_mean",  # of a target that the network makes itself; the task's targets have explicit zero tangents
}
REFUSED_WHEN_BATCHED = {"RReLU", "AdaptiveLogSoftmaxWithLoss", "as_strided_scatter"}
REFUSED_BY_DOUBLE_BACKWARD = {name for name in TABLE if name.endswith("_overlapping")} | {"as_strided_scatter"}
REFUSED = {
    *("weight_norm_called", "linear_cross_entropy_chunked"),  # which both get wrong, or double backward does
    *("Hardsigmoid_functional", "CrossMapLRN2d", "Embedding_max_norm", "cdist", "pdist", "ctc_loss"),
    *(name for name in TABLE if name.startswith(("EmbeddingBag", "multi_margin_loss", "multilabel_margin_loss"))),
    *(name for name in TABLE if operator_functions.IS_OLD and name.startswith(("grid_sample", "affine_grid"))),
}

DIFFERENCE_TOLERANCE = 1e-8
"""Central differences with h = 1e-6 in float64: truncation 1e-11, rounding 1e-16·|∇L|/h = 1e-10 relative to H·v; times
ten for steep operators, times ten for seeds. A wrong second derivative is off by 1e-2 or more."""
ROUNDING = 1e-12
"""Float64 rounding through some ten operations."""
FLOAT_CONSTANT = 1e-7
"""PyTorch's own backward pass of hardsigmoid multiplies by 1/6 in float32, in float64 too; ours divides by 6."""


def refused(name: str) -> set[str]:
    """The variants that are refused for an operator."""
    jvp = {"jvp", "jvp_vectorized"}
    return (
        (set(VARIANTS) if name in REFUSED else set())
        | (jvp if name in REFUSED_BY_JVP else set())
        | ({"jvp_vectorized"} if name in REFUSED_WHEN_BATCHED else set())
        | ({"double_backward"} if name in REFUSED_BY_DOUBLE_BACKWARD else set())
    )


def assert_right(point: Point, variant: str, name: str) -> None:
    """Gradient and product are those of plain PyTorch, by the reverse estimator's way too."""
    of_gradient, of_product = ROUNDING, DIFFERENCE_TOLERANCE
    if name.startswith("Hardsigmoid"):
        of_gradient = of_product = FLOAT_CONSTANT
    product, gradient = point.product(variant)
    assert relative_error(gradient, point.gradient) < of_gradient
    assert relative_error(product, point.difference) < of_product
    if variant == "double_backward":
        assert relative_error(point.pulled_back(), point.difference) < of_product


@pytest.mark.parametrize("name", TABLE)
def test_second_derivative_is_right_or_refused(name: str) -> None:
    point = Point(TABLE[name])
    refusals = {variant: point.chosen(variant) for variant in VARIANTS}
    assert {variant for variant, refusal in refusals.items() if refusal} == refused(name)
    for variant, refusal in refusals.items():
        if refusal:
            assert len(refusal.splitlines()) == 1
            assert refusal.startswith("tangents.method: ")
        else:
            assert_right(point, variant, name)


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        ("weight_norm_called", r"neither method .* torch\._weight_norm .*; expected torch\.nn\.utils\.parametriz"),
        pytest.param(
            "linear_cross_entropy_chunked",
            "neither method .* linear_cross_entropy .*; expected .* without `options`",
            marks=pytest.mark.skipif(operator_functions.IS_OLD, reason="PyTorch has no linear_cross_entropy"),
        ),
        ("cholesky_inverse", r"jvp cannot .* cholesky_inverse .* expected tangents\.method=double_backward, which can"),
        ("scatter_reduce_prod", r"jvp cannot .* scatter_reduce.* expected tangents\.method=double_backward, which can"),
    ],
)
def test_refusal_names_the_operator_and_the_way_out(name: str, way_out: str) -> None:
    refusal = Point(TABLE[name]).chosen("jvp")
    assert "PyTorch's own second derivative of it is wrong" in refusal
    assert re.search(way_out, refusal)


@pytest.mark.parametrize("name", sorted(WRITTEN_OUT))
def test_what_is_written_out_has_pytorchs_own_value(name: str) -> None:
    point = Point(TABLE[name])
    theirs, ours = built(point.build), point.loss()
    nn.utils.vector_to_parameters(point.weights, theirs.parameters())
    output, _ = ours.network(point.weights, ours.network.initial_buffers, torch.zeros(1))
    # Each sum of squares rounds once per term, in another order than the fused kernel.
    assert relative_error(output, theirs(torch.zeros(1))) < 1e-15


BATCHES_OF_ONE = {
    "Conv2d": layer(lambda: nn.Conv2d(4, 3, 3), (1, 4, 5, 6)),
    "BatchNorm2d": layer(lambda: nn.BatchNorm2d(4), (1, 4, 5, 6)),
    "InstanceNorm2d": layer(lambda: nn.InstanceNorm2d(4), (1, 4, 5, 6)),
    "GroupNorm": layer(lambda: nn.GroupNorm(2, 4), (1, 4, 5, 6)),
    "LayerNorm": layer(lambda: nn.LayerNorm(6), (1, 6)),
    "RMSNorm": layer(lambda: nn.RMSNorm(6), (1, 6)),
    "weight_norm": layer(lambda: nn.utils.parametrizations.weight_norm(nn.Linear(5, 1)), (1, 5)),
    "GRU": layer(lambda: nn.GRU(6, 3, batch_first=True), (1, 4, 6)),
    "scaled_dot_product_attention": of(F.scaled_dot_product_attention, *[(1, 1, 1, 3)] * 3),
    "cross_entropy": of(lambda x: F.cross_entropy(x, torch.tensor([1])), (1, 5)),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", BATCHES_OF_ONE)
def test_batch_of_one(name: str, variant: str) -> None:
    assert_right(Point(BATCHES_OF_ONE[name]), variant, name)


def with_zeros(function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> Build:
    """The function of random arguments, the first with a row of zeros."""

    def build() -> Operator:
        first, *rest = (r(*shape) for shape in shapes)
        first[1] = 0
        return Operator(function, first, *rest)

    return build


VECTORS = (3, 4)
ZEROS = {
    "abs": with_zeros(torch.abs, VECTORS),
    "relu": with_zeros(F.relu, VECTORS),
    "prod": with_zeros(lambda x: x.prod(-1), VECTORS),
    "cumprod": with_zeros(lambda x: x.cumprod(-1), VECTORS),
    "std": with_zeros(lambda x: x.std(-1), VECTORS),
    "layer_norm": with_zeros(lambda x: F.layer_norm(x, (4,)), VECTORS),
    "rms_norm": with_zeros(lambda x: F.rms_norm(x, (4,)), VECTORS),
    "norm_1": with_zeros(lambda x: x.norm(1, dim=-1), VECTORS),
    "norm_2": with_zeros(lambda x: x.norm(dim=-1), VECTORS),
    "norm_3": with_zeros(lambda x: x.norm(3, dim=-1), VECTORS),
    "lp_pool": with_zeros(lambda x: F.lp_pool1d(x, 2.0, 2), VECTORS),
    "normalize": with_zeros(F.normalize, VECTORS),
    "cosine_similarity": with_zeros(F.cosine_similarity, VECTORS, VECTORS),
    "sinc": with_zeros(torch.sinc, VECTORS),
    "xlogy": with_zeros(lambda x, y: torch.xlogy(x, y.exp()), VECTORS, VECTORS),
}
NAN_BY_DOUBLE_BACKWARD = {"norm_2", "normalize", "cosine_similarity", "sinc"}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ZEROS)
def test_zeros_give_finite_products_or_a_refusal(name: str, variant: str) -> None:
    point = Point(ZEROS[name])
    refusal = point.chosen(variant)
    assert bool(refusal) == (variant == "double_backward" and name in NAN_BY_DOUBLE_BACKWARD)
    if not refusal:
        assert point.product(variant)[0].isfinite().all()


def test_jvp_of_a_normalized_zero_vector_is_right() -> None:
    # With this eps the norm is clamped for a long way around zero, and differences see no kink.
    point = Point(with_zeros(lambda x: F.normalize(x, eps=0.1), VECTORS))
    assert_right(point, "jvp", "normalize")


MASKED_IN_ANOTHER_ORDER = {("Dropout", "jvp"), ("Dropout", "jvp_vectorized")} | {
    *(("AlphaDropout", "jvp"), ("AlphaDropout", "jvp_vectorized"))
}
"""Under `torch.func` the mask of an input that is not contiguous has the same draws at other places than in plain
PyTorch: another network than plain PyTorch's with the same seed, with exact derivatives of its own."""


@pytest.mark.parametrize(("name", "variant"), sorted(MASKED_IN_ANOTHER_ORDER))
def test_a_mask_in_another_order_has_the_products_of_its_own_gradient(name: str, variant: str) -> None:
    point = Point(TABLE[name], transposed)
    product, _ = point.product(variant)
    start, h = point.weights, 1e-6
    gradients = []
    for sign in (1, -1):
        point.weights = start + sign * h * point.direction
        gradients.append(point.product(variant)[1])
    assert relative_error(product, (gradients[0] - gradients[1]) / (2 * h)) < DIFFERENCE_TOLERANCE


def assert_right_in(layout: Layout, names: Iterable[str]) -> None:
    wrong = {}
    for name in names:
        try:
            point = Point(TABLE[name], layout)
        except RuntimeError:  # PyTorch's own gradient wants contiguous tensors here
            continue
        for variant in VARIANTS:
            if (name, variant) in MASKED_IN_ANOTHER_ORDER or point.chosen(variant):
                continue
            product, _ = point.product(variant)
            tolerance = FLOAT_CONSTANT if name.startswith("Hardsigmoid") else DIFFERENCE_TOLERANCE
            error = relative_error(product, point.difference)
            if not error < tolerance:
                wrong[name, variant] = error
    assert wrong == {}


LAYOUTS = (transposed, channels_last)
SENSITIVE_TO_LAYOUT = (
    *(
        "Conv2d",
        "Conv2d_depthwise",
        "ConvTranspose2d",
        "BatchNorm2d",
        "GroupNorm",
        "InstanceNorm2d",
        "LayerNorm",
        "PReLU",
    ),
    *("MaxPool2d", "AdaptiveAvgPool2d", "interpolate_bilinear", "weight_norm", "cross_entropy_mean", "cumprod", "LSTM"),
)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_in_memory_changes_nothing(layout: Layout) -> None:
    assert_right_in(layout, SENSITIVE_TO_LAYOUT)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_in_memory_changes_nothing_for_any_operator(layout: Layout) -> None:
    assert_right_in(layout, TABLE)


class Recorded(TorchFunctionMode):
    """Notes the names of the functions that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def, override]
        self.names.add(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


@pytest.mark.filterwarnings("ignore::UserWarning")  # what PyTorch thinks of some reductions
def test_every_function_of_torch_nn_is_in_the_table() -> None:
    functions = {function.__name__ for function in get_overridable_functions()[F]}
    other_names = {name for name in functions if name.endswith("d_with_indices")} | {"native_channel_shuffle", "relu6"}
    without_derivative = {"one_hot"}
    with Recorded() as calls:
        for build in TABLE.values():
            built(build)(torch.zeros(1))
    assert functions - calls.names <= other_names | without_derivative
