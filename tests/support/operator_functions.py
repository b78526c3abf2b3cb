"""Losses, recurrent and attention layers, reductions and linear algebra: the other half of `operator_layers`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from operator_layers import IMAGES, SEQUENCES, VECTORS, labels, layer, of, r, signs
from operators import Build, Operator
from torch import Tensor, nn
from torch.nn import functional as F

REDUCTIONS = ("mean", "sum", "none")


def against(loss: Callable[..., object], target: Callable[[], Tensor], *shapes: tuple[int, ...]) -> Build:
    """A loss of random arguments of these shapes and a constant target."""

    def build() -> Operator:
        fixed = target()
        return Operator(lambda *arguments: loss(*arguments, fixed), *(r(*shape) for shape in shapes))

    return build


def reduced(
    name: str, loss: Callable[..., object], target: Callable[[], Tensor], *shapes: tuple[int, ...]
) -> dict[str, Build]:
    return {f"{name}_{how}": against(partial(loss, reduction=how), target, *shapes) for how in REDUCTIONS}


def five() -> Tensor:
    return labels(4)


def rows() -> Tensor:
    return r(*VECTORS)


WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 0.3, 1.5], dtype=torch.float64)


def ctc(x: Tensor) -> Tensor:
    return F.ctc_loss(x.log_softmax(-1), torch.tensor([[1, 2], [3, 1]]), torch.tensor([6, 5]), torch.tensor([2, 2]))


def on_probabilities(x: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    return F.binary_cross_entropy(x.sigmoid(), target, reduction=reduction)


LOSSES: dict[str, Build] = {
    **reduced("cross_entropy", F.cross_entropy, five, VECTORS),
    **reduced(
        "cross_entropy_options",
        partial(F.cross_entropy, weight=WEIGHTS, ignore_index=1, label_smoothing=0.1),
        five,
        VECTORS,
    ),
    "cross_entropy_of_images": against(F.cross_entropy, lambda: labels(2, 5, 6, classes=4), IMAGES),
    "cross_entropy_of_probabilities": of(lambda x, y: F.cross_entropy(x, y.softmax(-1), WEIGHTS), VECTORS, VECTORS),
    **reduced("nll_loss", partial(F.nll_loss, weight=WEIGHTS, ignore_index=1), five, VECTORS),
    "nll_loss_of_images": against(F.nll_loss, lambda: labels(2, 5, 6, classes=4), IMAGES),
    **reduced("mse_loss", F.mse_loss, rows, VECTORS),
    **reduced("l1_loss", F.l1_loss, rows, VECTORS),
    **reduced("smooth_l1_loss", F.smooth_l1_loss, rows, VECTORS),
    **reduced("huber_loss", partial(F.huber_loss, delta=0.7), rows, VECTORS),
    **reduced("binary_cross_entropy", on_probabilities, lambda: torch.rand(VECTORS).double(), VECTORS),
    **reduced(
        "binary_cross_entropy_with_logits",
        partial(F.binary_cross_entropy_with_logits, weight=WEIGHTS, pos_weight=2 * WEIGHTS),
        *(lambda: torch.rand(VECTORS).double(), VECTORS),
    ),
    **reduced("kl_div", F.kl_div, lambda: torch.rand(VECTORS).double(), VECTORS),
    "kl_div_of_logs": of(lambda x, y: F.kl_div(x, y, reduction="batchmean", log_target=True), VECTORS, VECTORS),
    **reduced(
        "poisson_nll_loss", partial(F.poisson_nll_loss, full=True), lambda: torch.rand(VECTORS).double() + 2, VECTORS
    ),
    **reduced("soft_margin_loss", F.soft_margin_loss, lambda: signs(*VECTORS), VECTORS),
    **reduced("hinge_embedding_loss", F.hinge_embedding_loss, lambda: signs(*VECTORS), VECTORS),
    **reduced("cosine_embedding_loss", F.cosine_embedding_loss, lambda: signs(4), VECTORS, VECTORS),
    **reduced("margin_ranking_loss", F.margin_ranking_loss, lambda: signs(*VECTORS), VECTORS, VECTORS),
    **reduced("multi_margin_loss", F.multi_margin_loss, five, VECTORS),
    **reduced(
        "multilabel_margin_loss", F.multilabel_margin_loss, lambda: torch.tensor([[0, 3, -1, 1, 2]] * 4), VECTORS
    ),
    **reduced(
        "multilabel_soft_margin_loss",
        F.multilabel_soft_margin_loss,
        lambda: labels(*VECTORS, classes=2).double(),
        VECTORS,
    ),
    "gaussian_nll_loss": of(lambda x, y, v: F.gaussian_nll_loss(x, y, v.exp()), VECTORS, VECTORS, VECTORS),
    "triplet_margin_loss": of(partial(F.triplet_margin_loss, swap=True, margin=5.0), VECTORS, VECTORS, VECTORS),
    "triplet_margin_with_distance_loss": of(
        partial(F.triplet_margin_with_distance_loss, margin=5.0), VECTORS, VECTORS, VECTORS
    ),
    "ctc_loss": of(ctc, (6, 2, 5)),
    **{
        f"{name}_of_two": of(getattr(F, name), VECTORS, VECTORS)
        for name in ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
    },
    "binary_cross_entropy_of_two": of(lambda x, y: on_probabilities(x, y.sigmoid()), VECTORS, VECTORS),
    "binary_cross_entropy_with_logits_of_two": of(
        lambda x, y: F.binary_cross_entropy_with_logits(x, y.sigmoid()), VECTORS, VECTORS
    ),
    "AdaptiveLogSoftmaxWithLoss": layer(lambda: Targeted(nn.AdaptiveLogSoftmaxWithLoss(5, 8, [2, 4])), VECTORS),
}
IS_OLD = not hasattr(F, "linear_cross_entropy")
"""Whether PyTorch is older than 2.12 or 2.13, and lacks this function and some derivatives."""
if not IS_OLD:
    LOSSES["linear_cross_entropy"] = of(lambda x, w: F.linear_cross_entropy(x, w, torch.arange(4)), VECTORS, (5, 5))
    LOSSES["linear_cross_entropy_chunked"] = of(
        lambda x, w: F.linear_cross_entropy(
            x, w, torch.arange(4), options=nn.LinearCrossEntropyOptions(allow_retain_graph=True, batch_chunk_size=2)
        ),
        *(VECTORS, (5, 5)),
    )


class Targeted(nn.Module):
    """A loss with weights of its own, of the input and of constant labels."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, x: Tensor) -> object:
        return self.loss(x, torch.arange(len(x)) * 2 % 8)


class Attention(nn.Module):
    """Multi-head attention with masks; queries, keys and values are arguments of their own."""

    def __init__(self, **options: bool) -> None:
        super().__init__()
        self.need_weights = options.pop("need_weights", False)
        self.inner = nn.MultiheadAttention(6, 2, batch_first=True, **options)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> object:
        padding = torch.tensor([[False, False, False, True], [False] * 4])
        mask = torch.triu(torch.ones(4, 4, dtype=torch.bool), 1)
        return self.inner(q, k, v, key_padding_mask=padding, attn_mask=mask, need_weights=self.need_weights)


HEADS = (2, 2, 4, 3)
CAUSAL = torch.ones(4, 4, dtype=torch.bool).tril()

SEQUENTIAL: dict[str, Build] = {
    **{
        kind.__name__: layer(partial(kind, 6, 3, num_layers=2, batch_first=True), SEQUENCES)
        for kind in (nn.RNN, nn.LSTM, nn.GRU)
    },
    "RNN_relu": layer(lambda: nn.RNN(6, 3, nonlinearity="relu"), SEQUENCES),
    "LSTM_projected": layer(
        lambda: nn.LSTM(6, 4, proj_size=2, bidirectional=True),
        SEQUENCES,
    ),
    "GRU_bidirectional": layer(lambda: nn.GRU(6, 3, bidirectional=True, dropout=0.5, num_layers=2), SEQUENCES),
    "LSTM_packed": layer(lambda: Packed(nn.LSTM(6, 3)), SEQUENCES),
    "RNNCell": layer(lambda: nn.RNNCell(5, 3), VECTORS, (4, 3)),
    "GRUCell": layer(lambda: nn.GRUCell(5, 3), VECTORS, (4, 3)),
    "LSTMCell": layer(lambda: States(nn.LSTMCell(5, 3)), VECTORS, (4, 3), (4, 3)),
    "MultiheadAttention": layer(Attention, *[SEQUENCES] * 3),
    "MultiheadAttention_weights": layer(lambda: Attention(need_weights=True), *[SEQUENCES] * 3),
    "MultiheadAttention_bias_kv": layer(lambda: Attention(add_bias_kv=True, add_zero_attn=True), *[SEQUENCES] * 3),
    "TransformerEncoderLayer": layer(
        lambda: nn.TransformerEncoderLayer(6, 2, 8, 0.0, "gelu", batch_first=True), SEQUENCES
    ),
    "TransformerEncoder": layer(
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(6, 2, 8, 0.0, batch_first=True, norm_first=True), 2, enable_nested_tensor=False
        ),
        SEQUENCES,
    ),
    "TransformerDecoderLayer": layer(
        lambda: nn.TransformerDecoderLayer(6, 2, 8, 0.0, batch_first=True), SEQUENCES, SEQUENCES
    ),
    "Transformer": layer(lambda: nn.Transformer(6, 2, 1, 1, 8, 0.0, batch_first=True), SEQUENCES, SEQUENCES),
    "scaled_dot_product_attention": of(F.scaled_dot_product_attention, HEADS, HEADS, HEADS),
    "scaled_dot_product_attention_causal": of(
        partial(F.scaled_dot_product_attention, is_causal=True), HEADS, HEADS, HEADS
    ),
    "scaled_dot_product_attention_masked": of(
        partial(F.scaled_dot_product_attention, attn_mask=CAUSAL), HEADS, HEADS, HEADS
    ),
    "scaled_dot_product_attention_biased": of(F.scaled_dot_product_attention, HEADS, HEADS, HEADS, (2, 2, 4, 4)),
    "scaled_dot_product_attention_dropout": of(
        partial(F.scaled_dot_product_attention, dropout_p=0.3), HEADS, HEADS, HEADS
    ),
    "scaled_dot_product_attention_grouped": of(
        partial(F.scaled_dot_product_attention, enable_gqa=True), (2, 4, 4, 3), HEADS, HEADS
    ),
}


class Packed(nn.Module):
    """A recurrent layer on sequences of two lengths."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> object:
        return self.inner(nn.utils.rnn.pack_padded_sequence(x.transpose(0, 1), torch.tensor([4, 3])))[0].data


class States(nn.Module):
    """An LSTM cell whose two states are arguments of their own."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor, hidden: Tensor, state: Tensor) -> object:
        return self.cell(x, (hidden, state))


ROWS = torch.tensor([[0, 2, 2, 1, 0]] * 3)


def square(x: Tensor) -> Tensor:
    """A symmetric positive definite matrix."""
    return x @ x.mT + torch.eye(len(x), dtype=x.dtype)


MATRIX = (4, 4)
LINALG: dict[str, Build] = {
    **{
        f"vector_norm_{p}": of(partial(torch.linalg.vector_norm, ord=p, dim=-1), VECTORS)
        for p in (1, 2, 3, 0.5, float("inf"))
    },
    **{f"matrix_norm_{p}": of(partial(torch.linalg.matrix_norm, ord=p), MATRIX) for p in ("fro", "nuc", 2, 1, -2)},
    **{
        name: of(getattr(torch.linalg, name), MATRIX)
        for name in ("inv", "pinv", "det", "matrix_exp", "svdvals", "cond", "lu_factor")
    },
    "slogdet": of(lambda x: torch.linalg.slogdet(x)[1], MATRIX),
    "qr": of(torch.linalg.qr, MATRIX),
    "eigh": of(lambda x: (torch.linalg.eigh(square(x))[0], torch.linalg.eigh(square(x))[1].square()), MATRIX),
    "cholesky": of(lambda x: torch.linalg.cholesky(square(x)), MATRIX),
    "cholesky_solve": of(lambda x, y: torch.cholesky_solve(y, torch.linalg.cholesky(square(x))), MATRIX, (4, 2)),
    "cholesky_inverse": of(lambda x: torch.cholesky_inverse(torch.linalg.cholesky(square(x))), MATRIX),
    "solve": of(torch.linalg.solve, MATRIX, (4, 2)),
    "lstsq": of(lambda x, y: torch.linalg.lstsq(x, y)[0], MATRIX, (4, 2)),
    "solve_triangular": of(
        lambda x, y: torch.linalg.solve_triangular(square(x).tril(), y, upper=False), MATRIX, (4, 2)
    ),
    "triangular_solve": of(lambda x, y: torch.triangular_solve(y, square(x).tril(), upper=False)[0], MATRIX, (4, 2)),
    "einsum": of(lambda x, y: torch.einsum("bij,bkj->ik", x, y), SEQUENCES, SEQUENCES),
    "addmm": of(torch.addmm, (2, 3), (2, 4), (4, 3)),
    "baddbmm": of(torch.baddbmm, (2, 3, 3), (2, 3, 4), (2, 4, 3)),
    "cdist": of(torch.cdist, VECTORS, (3, 5)),
    "pdist": of(F.pdist, VECTORS),
    "pairwise_distance": of(F.pairwise_distance, VECTORS, VECTORS),
    "PairwiseDistance": layer(lambda: nn.PairwiseDistance(3.0), VECTORS, VECTORS),
    "CosineSimilarity": layer(lambda: nn.CosineSimilarity(-1), VECTORS, VECTORS),
    "renorm": of(lambda x: torch.renorm(x, 2, 0, 1.0), VECTORS),
}

REDUCTIONS_OF_TENSORS: dict[str, Build] = {
    **{
        name: of(partial(getattr(torch, name), dim=-1), VECTORS)
        for name in ("sum", "mean", "var", "std", "var_mean", "std_mean", "prod", "amax", "amin", "median")
    },
    **({} if IS_OLD else {"aminmax": of(partial(torch.aminmax, dim=-1), VECTORS)}),  # where it has none at all
    **{
        name: of(partial(getattr(torch, name), dim=-1), VECTORS)
        for name in ("logsumexp", "cumsum", "cumprod", "logcumsumexp", "cummax", "sort", "norm", "nansum", "diff")
    },
    **{name: of(getattr(torch, name), VECTORS) for name in ("abs", "exp", "expm1", "sin", "atan", "erf", "sinc", "i0")},
    **{
        name: of(partial(lambda name, x: getattr(torch, name)(x.exp()), name), VECTORS)
        for name in ("log", "sqrt", "rsqrt", "reciprocal", "lgamma", "digamma", "log1p")
    },
    **{
        name: of(getattr(torch, name), VECTORS, VECTORS)
        for name in ("mul", "div", "maximum", "minimum", "logaddexp", "logaddexp2", "atan2", "hypot", "fmod")
    },
    "pow": of(lambda x, y: x.exp() ** y, VECTORS, VECTORS),
    "xlogy": of(lambda x, y: torch.xlogy(x, y.exp()), VECTORS, VECTORS),
    "prod_of_all": of(torch.prod, (4,)),
    "topk": of(lambda x: torch.topk(x, 2)[0], VECTORS),
    "kthvalue": of(lambda x: torch.kthvalue(x, 2)[0], VECTORS),
    "quantile": of(lambda x: torch.quantile(x, 0.3, dim=-1), VECTORS),
    "where": of(lambda x, y: torch.where(x > 0, x, y), VECTORS, VECTORS),
    "clamp": of(lambda x, low: x.clamp(low - 0.5, low + 0.5), VECTORS, VECTORS),
    "lerp": of(torch.lerp, VECTORS, VECTORS, VECTORS),
    "addcmul": of(torch.addcmul, VECTORS, VECTORS, VECTORS),
    "addcdiv": of(lambda x, y, z: torch.addcdiv(x, y, z.exp()), VECTORS, VECTORS, VECTORS),
    "gather": of(lambda x: x.gather(0, ROWS), VECTORS),
    "index_select": of(lambda x: x.index_select(0, ROWS[0]), VECTORS),
    "index_put": of(lambda x, y: x.index_put((ROWS[0],), y, accumulate=True), VECTORS, (5, 5)),
    "masked_fill": of(lambda x: x.masked_fill(x > 0.5, 0.1), VECTORS),
    "masked_select": of(lambda x: x[x > 0], VECTORS),
    "scatter_add": of(lambda x, y: x.scatter_add(0, ROWS, y), VECTORS, (3, 5)),
    **{
        f"scatter_reduce_{how}": of(lambda x, y, how=how: x.scatter_reduce(0, ROWS, y, how), VECTORS, (3, 5))
        for how in ("sum", "mean", "prod", "amax", "amin")
    },
    "index_reduce": of(lambda x, y: x.index_reduce(0, ROWS[0], y, "mean"), VECTORS, (5, 5)),
    "as_strided": of(lambda x: torch.as_strided(x, (2, 2), (1, 1), 1), VECTORS),
    "as_strided_scatter": of(lambda x, y: torch.as_strided_scatter(x, y, (2, 2), (3, 1)), (3, 3), (2, 2)),
    "roll": of(lambda x: torch.roll(x, 2, 1), VECTORS),
    "trapezoid": of(torch.trapezoid, VECTORS, VECTORS),
    "rfft": of(lambda x: torch.view_as_real(torch.fft.rfft(x)), VECTORS),
    "complex_abs": of(lambda x, y: torch.complex(x, y).abs(), VECTORS, VECTORS),
    "stft": of(lambda x: torch.stft(x, 4, window=torch.ones(4).double(), return_complex=True).abs(), (12,)),
}

SECTIONS = [LOSSES, SEQUENTIAL, LINALG, REDUCTIONS_OF_TENSORS]
