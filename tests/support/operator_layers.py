"""Every operator of `torch.nn` and `torch.nn.functional` that has derivatives, with arguments for each.

The arguments lie at a point without kinks. What is known to be refused is listed, too.
An entry is built anew, from a seeded generator, each time: `TABLE[name]()`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import torch
from operators import Build, Operator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint


def r(*shape: int) -> Tensor:
    """Normal random numbers: no ties and no zeros."""
    return torch.randn(shape, dtype=torch.float64)


def labels(*shape: int, classes: int = 5) -> Tensor:
    return torch.randint(classes, shape)


def signs(*shape: int) -> Tensor:
    return 2.0 * torch.randint(2, shape).double() - 1


def of(function: Callable[..., object], *shapes: tuple[int, ...]) -> Build:
    """The function of random arguments of these shapes."""
    return lambda: Operator(function, *(r(*shape) for shape in shapes))


def layer(make: Callable[[], Callable[..., object]], *shapes: tuple[int, ...]) -> Build:
    """The module that `make` builds, with random weights, on random inputs of these shapes."""

    def build() -> Operator:
        module = make()
        assert isinstance(module, nn.Module)
        for parameter in module.parameters():
            nn.init.normal_(parameter, 0.3 if parameter.dim() == 1 else 0.0, 0.5)
        return Operator(module.double(), *(r(*shape) for shape in shapes))

    return build


VECTORS, SEQUENCES, IMAGES, VOLUMES = (4, 5), (2, 4, 6), (2, 4, 5, 6), (1, 4, 4, 5, 4)

ACTIVATIONS: dict[str, Build] = {
    **{
        kind.__name__: layer(kind, VECTORS)
        for kind in (
            *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU),
            *(nn.Mish, nn.Sigmoid, nn.Tanh, nn.LogSigmoid, nn.Softplus, nn.Softsign, nn.Tanhshrink, nn.Hardtanh),
            *(nn.Hardswish, nn.Hardsigmoid, nn.Hardshrink, nn.Softshrink),
        )
    },
    "GELU_tanh": layer(lambda: nn.GELU("tanh"), VECTORS),
    "Threshold": layer(lambda: nn.Threshold(0.1, 0.5), VECTORS),
    "GLU": layer(nn.GLU, (3, 6)),
    "Softmax": layer(lambda: nn.Softmax(-1), VECTORS),
    "Softmin": layer(lambda: nn.Softmin(-1), VECTORS),
    "LogSoftmax": layer(lambda: nn.LogSoftmax(-1), VECTORS),
    "Softmax2d": layer(nn.Softmax2d, (2, 3, 2, 2)),
    "gumbel_softmax": of(partial(F.gumbel_softmax, tau=0.7), VECTORS),
    "ReLU_inplace": layer(lambda: nn.Sequential(nn.Linear(5, 5), nn.ReLU(inplace=True)), VECTORS),
    "Hardsigmoid_inplace": layer(lambda: nn.Sequential(nn.Linear(5, 5), nn.Hardsigmoid(inplace=True)), VECTORS),
    "Hardswish_inplace": layer(lambda: nn.Sequential(nn.Linear(5, 5), nn.Hardswish(inplace=True)), VECTORS),
    "Hardsigmoid_functional": of(F.hardsigmoid, VECTORS),
}

NORMS: dict[str, Build] = {
    "BatchNorm1d": layer(lambda: nn.BatchNorm1d(5), VECTORS),
    "BatchNorm2d": layer(lambda: nn.BatchNorm2d(4), IMAGES),
    "BatchNorm3d": layer(lambda: nn.BatchNorm3d(4), VOLUMES),
    "BatchNorm_not_affine": layer(lambda: nn.BatchNorm2d(4, affine=False, track_running_stats=False), IMAGES),
    "batch_norm_evaluated": of(
        lambda x, w, b: F.batch_norm(x, torch.full((4,), 0.1).double(), torch.full((4,), 2.0).double(), w, b),
        *(IMAGES, (4,), (4,)),
    ),
    "InstanceNorm1d": layer(lambda: nn.InstanceNorm1d(4, affine=True), SEQUENCES),
    "InstanceNorm2d": layer(lambda: nn.InstanceNorm2d(4, affine=True), IMAGES),
    "InstanceNorm3d": layer(lambda: nn.InstanceNorm3d(4), VOLUMES),
    "LayerNorm": layer(lambda: nn.LayerNorm(6), SEQUENCES),
    "LayerNorm_two_axes": layer(lambda: nn.LayerNorm([5, 6]), IMAGES),
    "GroupNorm": layer(lambda: nn.GroupNorm(2, 4), IMAGES),
    "RMSNorm": layer(lambda: nn.RMSNorm(6), SEQUENCES),
    "LocalResponseNorm": layer(lambda: nn.LocalResponseNorm(3), IMAGES),
    "normalize": of(F.normalize, VECTORS),
    "normalize_p3": of(partial(F.normalize, p=3.0), VECTORS),
    "CrossMapLRN2d": layer(lambda: nn.CrossMapLRN2d(3), IMAGES),
}


def weight_norm_hook(module: nn.Module, name: str = "weight", dim: int | None = 0) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated, and still in wide use
        return nn.utils.weight_norm(module, name, dim)  # type: ignore[arg-type]


class Recomputed(nn.Module):
    """Runs `inner` again in each backward pass."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=False)  # type: ignore[return-value]


class Looked(nn.Module):
    """Calls `table` with the same random indices below 5, whatever comes in."""

    def __init__(self, table: nn.Module, *shape: int) -> None:
        super().__init__()
        self.table = table
        self.register_buffer("indices", labels(*shape))

    def forward(self) -> object:
        return self.table(self.indices)


REPARAMETRIZED: dict[str, Build] = {
    "weight_norm": layer(lambda: parametrizations.weight_norm(nn.Conv1d(4, 3, 2)), SEQUENCES),
    "weight_norm_last": layer(lambda: parametrizations.weight_norm(nn.Conv1d(4, 3, 2), dim=2), SEQUENCES),
    "weight_norm_middle": layer(lambda: parametrizations.weight_norm(nn.Conv1d(4, 3, 2), dim=1), SEQUENCES),
    "weight_norm_all": layer(lambda: parametrizations.weight_norm(nn.Linear(5, 3), dim=-1), VECTORS),
    "weight_norm_twice": layer(
        lambda: parametrizations.weight_norm(parametrizations.weight_norm(nn.Linear(5, 3)), "bias"), VECTORS
    ),
    "weight_norm_hook": layer(lambda: weight_norm_hook(nn.Linear(5, 3)), VECTORS),
    "weight_norm_hook_last": layer(lambda: weight_norm_hook(nn.Conv1d(4, 3, 2), dim=2), SEQUENCES),
    "weight_norm_hook_all": layer(lambda: weight_norm_hook(nn.Linear(5, 3), dim=None), VECTORS),
    "weight_norm_recurrent": layer(lambda: weight_norm_hook(nn.LSTM(6, 3), "weight_hh_l0"), SEQUENCES),
    "weight_norm_recomputed": layer(lambda: Recomputed(parametrizations.weight_norm(nn.Linear(5, 3))), VECTORS),
    "weight_norm_hook_recomputed": layer(lambda: Recomputed(weight_norm_hook(nn.Linear(5, 3))), VECTORS),
    "weight_norm_called": of(torch.ops.aten._weight_norm, (3, 4), (3, 1)),
    "orthogonal_matrix_exp": layer(
        lambda: parametrizations.orthogonal(nn.Linear(4, 4), "weight", "matrix_exp"), (2, 4)
    ),
    "orthogonal_cayley": layer(lambda: parametrizations.orthogonal(nn.Linear(4, 4), "weight", "cayley"), (2, 4)),
    "orthogonal_householder": layer(
        lambda: parametrizations.orthogonal(nn.Linear(4, 3), "weight", "householder"), (2, 4)
    ),
    "spectral_norm": layer(lambda: parametrizations.spectral_norm(nn.Linear(5, 3)).eval(), VECTORS),
    "spectral_norm_hook": layer(lambda: nn.utils.spectral_norm(nn.Linear(5, 3)).eval(), VECTORS),
    "checkpoint": layer(lambda: Recomputed(nn.Sequential(nn.Linear(5, 3), nn.Tanh())), VECTORS),
}

CONVOLUTIONS: dict[str, Build] = {
    "Linear": layer(lambda: nn.Linear(5, 3), VECTORS),
    "Bilinear": layer(lambda: nn.Bilinear(5, 3, 2), VECTORS, (4, 3)),
    "Conv1d": layer(lambda: nn.Conv1d(4, 3, 3, padding=1), SEQUENCES),
    "Conv2d": layer(lambda: nn.Conv2d(4, 3, 3, stride=2), IMAGES),
    "Conv2d_grouped_dilated": layer(lambda: nn.Conv2d(4, 6, 2, groups=2, dilation=2, padding="same"), IMAGES),
    "Conv2d_depthwise": layer(lambda: nn.Conv2d(4, 4, 3, groups=4, bias=False), IMAGES),
    **{
        f"Conv2d_{mode}": layer(partial(nn.Conv2d, 4, 3, 3, padding=1, padding_mode=mode), IMAGES)
        for mode in ("circular", "reflect", "replicate")
    },
    "Conv3d": layer(lambda: nn.Conv3d(4, 2, 2), VOLUMES),
    "ConvTranspose1d": layer(lambda: nn.ConvTranspose1d(4, 3, 3, stride=2, output_padding=1), SEQUENCES),
    "ConvTranspose2d": layer(lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2, dilation=2), IMAGES),
    "ConvTranspose3d": layer(lambda: nn.ConvTranspose3d(4, 2, 2), VOLUMES),
    "conv_tbc": of(F.conv_tbc, (5, 2, 3), (2, 3, 4), (4,)),
    "Fold": layer(lambda: nn.Fold((4, 4), 2), (2, 8, 9)),
    "Unfold": layer(lambda: nn.Unfold(2), (2, 2, 4, 4)),
    "Embedding": layer(lambda: Looked(nn.Embedding(5, 3, padding_idx=0), 4, 5)),
    "Embedding_by_frequency": layer(lambda: Looked(nn.Embedding(5, 3, scale_grad_by_freq=True), 9)),
    "Embedding_max_norm": layer(lambda: Looked(nn.Embedding(5, 3, max_norm=0.5), 4)),
    **{
        f"EmbeddingBag_{mode}": layer(partial(lambda m: Looked(nn.EmbeddingBag(5, 3, mode=m), 3, 2), mode))
        for mode in ("sum", "mean", "max")
    },
}


def pools(dimensions: int, shape: tuple[int, ...]) -> dict[str, Build]:
    """All poolings over this many spatial axes."""
    kind = {name: getattr(nn, f"{name}{dimensions}d") for name in ("MaxPool", "AvgPool", "LPPool", "AdaptiveAvgPool")}
    adaptive_max, unpool = getattr(nn, f"AdaptiveMaxPool{dimensions}d"), getattr(nn, f"MaxUnpool{dimensions}d")

    def unpooled(x: Tensor, size: int, stride: int) -> Tensor:
        output, indices = kind["MaxPool"](size, stride, return_indices=True)(x)
        return unpool(size, stride)(output, indices, output_size=x.shape)

    return {
        f"MaxPool{dimensions}d": layer(lambda: kind["MaxPool"](3, 2, 1), shape),
        f"AvgPool{dimensions}d": layer(lambda: kind["AvgPool"](3, 2, 1, count_include_pad=False), shape),
        f"LPPool{dimensions}d": of(lambda x: kind["LPPool"](3.0, 2)(x.exp()), shape),
        f"AdaptiveAvgPool{dimensions}d": layer(lambda: kind["AdaptiveAvgPool"](3), shape),
        f"AdaptiveMaxPool{dimensions}d": layer(lambda: adaptive_max(3), shape),
        f"MaxUnpool{dimensions}d": of(partial(unpooled, size=2, stride=2), shape),
        f"MaxUnpool{dimensions}d_overlapping": of(partial(unpooled, size=3, stride=1), shape),
    }


POOLS: dict[str, Build] = {
    **pools(1, SEQUENCES),
    **pools(2, IMAGES),
    **pools(3, VOLUMES),
    "FractionalMaxPool2d": layer(lambda: nn.FractionalMaxPool2d(2, output_size=3), IMAGES),
    "FractionalMaxPool3d": layer(lambda: nn.FractionalMaxPool3d(2, output_size=2), VOLUMES),
}


def resized(size: tuple[int, ...], mode: str, **options: bool) -> Callable[..., Tensor]:
    return partial(F.interpolate, size=size, mode=mode, **options)


SHAPES: dict[str, Build] = {
    "interpolate_nearest": of(resized((3, 8), "nearest"), IMAGES),
    "interpolate_linear": of(resized((9,), "linear"), SEQUENCES),
    "interpolate_bilinear": of(resized((3, 8), "bilinear", antialias=True), IMAGES),
    "interpolate_bicubic": of(resized((7, 8), "bicubic", align_corners=True), IMAGES),
    "interpolate_trilinear": of(resized((3, 3, 6), "trilinear"), VOLUMES),
    "interpolate_area": of(resized((3, 3), "area"), IMAGES),
    "Upsample": layer(lambda: nn.Upsample(scale_factor=2, mode="nearest"), IMAGES),
    "UpsamplingNearest2d": layer(lambda: nn.UpsamplingNearest2d(scale_factor=2), IMAGES),
    "UpsamplingBilinear2d": layer(lambda: nn.UpsamplingBilinear2d(scale_factor=2), IMAGES),
    **{
        f"grid_sample_{mode}_{padding}": of(
            partial(F.grid_sample, mode=mode, padding_mode=padding, align_corners=False), IMAGES, (2, 3, 3, 2)
        )
        for mode in ("bilinear", "nearest", "bicubic")
        for padding in ("zeros", "border", "reflection")
    },
    "grid_sample_3d": of(partial(F.grid_sample, align_corners=True), VOLUMES, (1, 2, 2, 2, 3)),
    "affine_grid": of(
        lambda x, t: F.grid_sample(x, F.affine_grid(t, [2, 4, 3, 3], align_corners=False), align_corners=False),
        *(IMAGES, (2, 2, 3)),
    ),
    "PixelShuffle": layer(lambda: nn.PixelShuffle(2), IMAGES),
    "PixelUnshuffle": layer(lambda: nn.PixelUnshuffle(2), (2, 1, 4, 4)),
    "ChannelShuffle": layer(lambda: nn.ChannelShuffle(2), IMAGES),
    "Flatten": layer(nn.Flatten, IMAGES),
    "Unflatten": layer(lambda: nn.Unflatten(1, (2, 2)), IMAGES),
    "ZeroPad2d": layer(lambda: nn.ZeroPad2d((1, -1, 0, 1)), IMAGES),
    **{
        f"{kind}Pad{n}d": layer(
            partial(getattr(nn, f"{kind}Pad{n}d"), *((1,) if kind != "Constant" else (1, 0.5))), shape
        )
        for kind in ("Reflection", "Replication", "Circular", "Constant")
        for n, shape in ((1, SEQUENCES), (2, IMAGES), (3, VOLUMES))
    },
    "ZeroPad1d": layer(lambda: nn.ZeroPad1d(1), SEQUENCES),
    "ZeroPad3d": layer(lambda: nn.ZeroPad3d(1), VOLUMES),
    **{
        kind.__name__: layer(kind, IMAGES)
        for kind in (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
        if kind is not nn.Dropout1d
    },
    "Dropout1d": layer(nn.Dropout1d, SEQUENCES),
    "Identity": layer(nn.Identity, VECTORS),
}

SECTIONS = [ACTIVATIONS, NORMS, REPARAMETRIZED, CONVOLUTIONS, POOLS, SHAPES]
