"""Named initializations of a network's weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn


def _kaiming(weight: Tensor) -> None:
    nn.init.kaiming_normal_(weight, nonlinearity="relu")


INITIALIZATIONS: Mapping[str, Callable[[Tensor], object] | None] = {
    "default": None,
    "xavier": nn.init.xavier_normal_,
    "kaiming": _kaiming,
    "orthogonal": nn.init.orthogonal_,
}


def initialize(model: nn.Module, name: str) -> None:
    """Redraw, in place, every weight of two dimensions or more and zero its bias.

    Normalization layers (one-dimensional weights) and what is not called a weight, such as embeddings of positions,
    keep their values; ``default`` keeps everything.
    """
    redraw = INITIALIZATIONS[name]
    if redraw is None:
        return
    for module in model.modules():
        parameters = dict(module.named_parameters(recurse=False))
        for key, parameter in parameters.items():
            if key.endswith("weight") and parameter.dim() >= 2:  # attention has an in_proj_weight too
                redraw(parameter)
                bias = parameters.get(f"{key.removesuffix('weight')}bias")
                if bias is not None:
                    nn.init.zeros_(bias)
