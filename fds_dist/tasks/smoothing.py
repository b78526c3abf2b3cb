"""Cross-entropy with a strength of label smoothing that can be learned."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

LABEL_SMOOTHING = "label_smoothing"
"""The hyperparameter of the loss."""


def smoothed_cross_entropy(output: Tensor, target: Tensor, hyperparameters: Mapping[str, Tensor]) -> Tensor:
    """The mean of (1 − s)·(−log p_target) + s·(mean of −log p over the classes), s = `label_smoothing` [].

    It is `torch.nn.functional.cross_entropy(output, target, label_smoothing=s)`, as a function of s too (Szegedy et
    al., "Rethinking the inception architecture", arXiv 1512.00567).

    Args:
        output: [B, C] logits.
        target: [B] class indices.
    """
    log_p, smoothing = output.log_softmax(-1), hyperparameters[LABEL_SMOOTHING]
    return (1 - smoothing) * F.nll_loss(log_p, target) - smoothing * log_p.mean()
