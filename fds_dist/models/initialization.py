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
    """Redraw, in place, the weights of every layer whose weight has two dimensions or more and zero its bias.

    Normalization layers (one-dimensional weights) keep their values; ``default`` keeps everything.
    """
    redraw = INITIALIZATIONS[name]
    if redraw is None:
        return
    for module in model.modules():
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if isinstance(weight, Tensor) and weight.dim() >= 2:
            redraw(weight)
            if isinstance(bias, Tensor):
                nn.init.zeros_(bias)
