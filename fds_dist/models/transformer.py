"""A causal transformer that predicts the next token.

Shapes: B = batch, T = tokens of a window, W = width, H = heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fds_dist.common.faults import Fault, UserError
from fds_dist.common.kinds import Count, Ratio, Switch, fault, read_by, sizes
from fds_dist.common.options import checked
from fds_dist.models.parts import checkpoint_blocks
from fds_dist.models.size import check_size

INITIAL_DEVIATION = 0.02  # of embeddings and linear maps, as in GPT-2


class _Block(nn.Module):
    """Causal self-attention and a two-layer perceptron, each behind a layer-norm and added to its input."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:  # [B, T, W]
        x = x + self.dropout(self._attention(self.norm1(x)))
        return x + self.dropout(self.mlp(self.norm2(x)))

    def _attention(self, x: Tensor) -> Tensor:
        by_head = self.queries_keys_values(x).unflatten(-1, (3, self.heads, -1))  # [B, T, 3, H, W/H]
        queries, keys, values = by_head.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)  # [B, H, T, W/H]
        return self.attended(mixed.transpose(1, 2).flatten(2))


class _Transformer(nn.Module):
    def __init__(self, context: int, tokens: int, layers: int, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.tokens = nn.Embedding(tokens, width)
        self.positions = nn.Embedding(context, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(_Block(width, heads, dropout) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, tokens, bias=False)

    def forward(self, window: Tensor) -> Tensor:
        places = torch.arange(window.shape[1], device=window.device)
        x = self.dropout(self.tokens(window.long()) + self.positions(places))
        return self.head(self.norm(self.blocks(x)))


def _weights(context: int, tokens: int, layers: int, width: int) -> int:
    """The number of weights, from the shapes of all layers."""
    block = 12 * width**2 + 13 * width  # of attention 4 W² + 4 W, of the perceptron 8 W² + 5 W, of two norms 4 W
    return (2 * tokens + context) * width + layers * block + 2 * width


def _window(value: object) -> list[int]:
    shape = sizes(value)
    if len(shape) != 1:
        problem = f"transformer takes windows of tokens, not {'×'.join(map(str, shape))}"
        raise fault(problem, "[tokens], the shape of a sample in a task such as text")
    return shape


@checked("model")
def transformer(
    input_shape: Annotated[Sequence[int], read_by(_window)],
    classes: Count,
    *,
    layers: Count = 4,
    width: Count = 128,
    heads: Count = 4,
    dropout: Ratio = 0.0,
    checkpointing: Switch = False,
) -> nn.Module:
    """A transformer over windows of tokens; B×T whole numbers below ``classes`` -> B×T×classes.

    Layer-norm comes before attention and perceptron (Radford et al., 2019); positions are learned. With
    ``checkpointing``, each layer's activations are computed again in the backward pass. Raises `UserError` for each
    option that is out of range.
    """
    if width % heads:
        problem = f"{width} does not divide among {heads} heads"
        raise UserError(Fault("model.width", problem, f"a multiple of {heads}"))
    check_size("transformer", _weights(input_shape[0], classes, layers, width), layers)
    model = _Transformer(input_shape[0], classes, layers, width, heads, dropout)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=INITIAL_DEVIATION)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    return checkpoint_blocks(model) if checkpointing else model
