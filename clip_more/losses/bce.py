"""Binary cross-entropy, one sigmoid a class."""

import torch.nn.functional as F
from torch import Tensor, nn

from clip_more.losses.reduction import check_reduction, full_precision, over_classes


class BCELoss(nn.Module):
    """`-[y log p + (1 - y) log(1 - p)]` with `p = sigmoid(z)`; sum over classes, mean over images.

    Args:
        reduction: Over the classes of an image: `sum` (learning rates here are meant for it) or `mean`.
    """

    def __init__(self, reduction: str = "sum") -> None:
        super().__init__()
        self.reduction = check_reduction(reduction)

    def forward(self, logits: Tensor, targets: Tensor, known: Tensor | None = None) -> Tensor:
        """Loss of a batch.

        Args:
            logits: (N, C).
            targets: (N, C), 0 or 1.
            known: (N, C) bool; unknown entries count nowhere. All known without it.

        Returns:
            A scalar, fp32 or better.
        """
        logits = full_precision(logits)
        terms = F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none")
        return over_classes(terms, known, self.reduction).mean()
