"""A causal transformer that predicts the next token.

Shapes: B = batch, T = tokens of a window, W = width, H = heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fds_dist.common.faults import Fault, UserError
from fds_dist.common.registry import is_count
from fds_dist.models.parts import checkpoint_blocks

INITIAL_DEVIATION = 0.02  # of embeddings and linear maps, as in GPT-2


class _Block(nn.Module):
    """Layer-norm, causal self-attention, layer-norm, two-layer perceptron; both added to their input."""

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


def transformer(
    input_shape: Sequence[int],
    classes: int,
    *,
    layers: int = 4,
    width: int = 128,
    heads: int = 4,
    dropout: float = 0.0,
    checkpointing: bool = False,
) -> nn.Module:
    """A transformer over windows of tokens; B×T whole numbers below ``classes`` -> B×T×classes.

    Layer-norm comes before attention and perceptron (Radford et al., 2019), positions are learned. With
    ``checkpointing`` each layer's activations are computed again in the backward pass. Raises `UserError` naming each
    option out of range.
    """
    counts = {"layers": layers, "width": width, "heads": heads}
    faults = [
        Fault(f"model.{name}", f"{value!r} is not valid", "a whole number of at least 1")
        for name, value in counts.items()
        if not is_count(value)
    ]
    if not faults and width % heads:
        faults.append(Fault("model.width", f"{width} does not divide among {heads} heads", f"a multiple of {heads}"))
    if not (isinstance(dropout, (int, float)) and 0 <= dropout < 1):
        faults.append(Fault("model.dropout", f"{dropout!r} is not valid", "a number of at least 0 and under 1"))
    if not isinstance(checkpointing, bool):
        faults.append(Fault("model.checkpointing", f"{checkpointing!r} is not valid", "true or false"))
    if len(input_shape) != 1:
        shape = "×".join(map(str, input_shape))
        faults.append(Fault("model.name", f"transformer takes windows of tokens, not {shape}", "a task such as text"))
    if faults:
        raise UserError(faults)
    model = _Transformer(input_shape[0], classes, layers, width, heads, dropout)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=INITIAL_DEVIATION)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    return checkpoint_blocks(model) if checkpointing else model
