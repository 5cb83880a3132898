"""Focal loss: easy entries count less (arXiv 1708.02002)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_more.losses.reduction import check_reduction, full_precision, over_classes


class FocalLoss(nn.Module):
    """`-alpha_t (1 - p_t)^gamma log p_t`, one sigmoid a class (equation 5); sum over classes, mean over images.

    p_t is p for a positive and 1 - p for a negative; alpha_t is alpha and 1 - alpha. The factor takes part in the
    gradient.

    Args:
        gamma: Focusing; at 0 the loss is BCE.
        alpha: Weight of positives, in [0, 1], negatives having 1 - alpha (the paper: 0.25); both weigh 1 without it.
        reduction: Over the classes of an image: `sum` or `mean`.

    Raises:
        ValueError: gamma is below 0, or alpha outside [0, 1].
    """

    def __init__(self, gamma: float = 2.0, alpha: float | None = None, reduction: str = "sum") -> None:
        super().__init__()
        if alpha is not None and not 0 <= alpha <= 1:
            raise ValueError(f"focal alpha is {alpha}, but the weight of positives lies in [0, 1]")
        self.gamma = check_gamma(gamma)
        self.alpha = alpha
        self.reduction = check_reduction(reduction)

    def forward(self, logits: Tensor, targets: Tensor, known: Tensor | None = None) -> Tensor:
        """Loss of a batch: logits (N, C), targets (N, C) in {0, 1}, known (N, C) bool -> scalar."""
        logits = full_precision(logits)
        positive = targets.to(torch.bool)
        signed = torch.where(positive, logits, -logits)
        terms = -focus(signed, self.gamma) * F.logsigmoid(signed)
        if self.alpha is not None:
            terms = torch.where(positive, self.alpha, 1 - self.alpha) * terms
        return over_classes(terms, known, self.reduction).mean()


def focus(signed: Tensor, gamma: float) -> Tensor:
    """`(1 - p_t)^gamma`, `p_t = sigmoid(signed)`: from its logarithm, so that no gradient is infinite at p_t = 1."""
    return torch.exp(gamma * F.logsigmoid(-signed))


def check_gamma(gamma: float) -> float:
    """`gamma`, if it is 0 or more.

    Raises:
        ValueError: Otherwise.
    """
    if not gamma >= 0:
        raise ValueError(f"focal gamma is {gamma}; it must be >= 0")
    return gamma
