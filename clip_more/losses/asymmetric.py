"""Asymmetric loss for multi-label classification (ASL, arXiv 2009.14119)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_more.losses.reduction import check_reduction, full_precision, over_classes


@dataclass(frozen=True)
class Focus:
    """The focusing factor of ASL: `(1-p)^g+` of a positive, `p_m^g-` of a negative, `p_m = max(p - m, 0)`.

    Attributes:
        gamma_positive: Focusing g+ of positives.
        gamma_negative: Focusing g- of negatives.
        margin: Probability shift m: negatives below it weigh nothing, where g- is above 0.
    """

    gamma_positive: float = 0.0
    gamma_negative: float = 4.0
    margin: float = 0.05

    def __post_init__(self) -> None:
        if self.gamma_positive < 0 or self.gamma_negative < 0:
            raise ValueError(f"asl focusing must be >= 0; got g+ {self.gamma_positive} and g- {self.gamma_negative}")
        if not 0 <= self.margin < 1:
            raise ValueError(f"asl margin is {self.margin}, but a probability shift lies in [0, 1)")

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """(N, C) factors in [0, 1] of logits (N, C) and targets (N, C) in {0, 1}."""
        return torch.where(
            targets.to(torch.bool),
            torch.sigmoid(-logits) ** self.gamma_positive,
            self.shifted(logits) ** self.gamma_negative,
        )

    def shifted(self, logits: Tensor) -> Tensor:
        """p_m."""
        return (torch.sigmoid(logits) - self.margin).clamp_min(0.0)


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
        self.focus = Focus(gamma_positive, gamma_negative, margin)
        self.focal_gradient = focal_gradient
        self.reduction = check_reduction(reduction)

    def forward(self, logits: Tensor, targets: Tensor, known: Tensor | None = None) -> Tensor:
        """Loss of a batch: logits (N, C), targets (N, C) in {0, 1}, known (N, C) bool -> scalar."""
        logits = full_precision(logits)
        positive = targets.to(torch.bool)
        # 1 - p_m is at least m, or exactly 1 - p when m = 0, where logsigmoid is the safe form.
        safe = self.focus.margin == 0
        negative_log = F.logsigmoid(-logits) if safe else torch.log1p(-self.focus.shifted(logits))
        log_likelihood = torch.where(positive, F.logsigmoid(logits), negative_log)
        with torch.set_grad_enabled(self.focal_gradient and torch.is_grad_enabled()):
            focus = self.focus(logits, positive)
        return over_classes(-focus * log_likelihood, known, self.reduction).mean()
