"""Asymmetric loss for multi-label classification (ASL, arXiv 2009.14119)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_more.losses.reduction import check_reduction, full_precision, over_classes


class AsymmetricLoss(nn.Module):
    """`-[y (1-p)^g+ log p + (1-y) p_m^g- log(1-p_m)]` with `p_m = max(p - m, 0)` (ASL, equations 3 to 7).

    The released code sums over the batch as well; here it is the mean over images, so that the loss does not grow
    with the batch.

    Args:
        gamma_positive: Focusing g+ of positives.
        gamma_negative: Focusing g- of negatives.
        margin: Probability shift m: negatives below it cost nothing.
        focal_gradient: Whether the focusing factor takes part in the gradient. The released code keeps it out
            (`False`); the equations have it in.
        reduction: Over the classes of an image: `sum` or `mean`.
    """

    def __init__(
        self,
        gamma_positive: float = 0.0,
        gamma_negative: float = 4.0,
        margin: float = 0.05,
        focal_gradient: bool = False,
        reduction: str = "sum",
    ) -> None:
        super().__init__()
        if gamma_positive < 0 or gamma_negative < 0:
            raise ValueError(f"asl focusing must be >= 0; got g+ {gamma_positive} and g- {gamma_negative}")
        if not 0 <= margin < 1:
            raise ValueError(f"asl margin is {margin}, but a probability shift lies in [0, 1)")
        self.gamma_positive = gamma_positive
        self.gamma_negative = gamma_negative
        self.margin = margin
        self.focal_gradient = focal_gradient
        self.reduction = check_reduction(reduction)

    def forward(self, logits: Tensor, targets: Tensor, known: Tensor | None = None) -> Tensor:
        """Loss of a batch: logits (N, C), targets (N, C) in {0, 1}, known (N, C) bool -> scalar."""
        logits = full_precision(logits)
        positive = targets.to(torch.bool)
        shifted = (torch.sigmoid(logits) - self.margin).clamp_min(0.0)
        # 1 - p_m is at least m, or exactly 1 - p when m = 0, where logsigmoid is the safe form.
        negative_log = torch.log1p(-shifted) if self.margin > 0 else F.logsigmoid(-logits)
        log_likelihood = torch.where(positive, F.logsigmoid(logits), negative_log)
        with torch.set_grad_enabled(self.focal_gradient and torch.is_grad_enabled()):
            focus = torch.where(positive, torch.sigmoid(-logits) ** self.gamma_positive, shifted**self.gamma_negative)
        return over_classes(-focus * log_likelihood, known, self.reduction).mean()
