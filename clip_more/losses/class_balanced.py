"""Losses weighted by the effective number of photos of a class (class-balanced loss, arXiv 1901.05555)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_more.losses.class_counts import check_columns, checked_counts
from clip_more.losses.reduction import check_reduction, full_precision, over_classes
from clip_more.losses.single_label import class_indices


def class_balanced_weights(counts: Tensor, beta: float = 0.9999) -> Tensor:
    """`w_c = (1 - beta) / (1 - beta^n_c)`, scaled so that the C weights add up to C.

    At beta 0 all weights are 1; towards beta 1 they become inverse counts.

    Args:
        counts: (C,) positives of each class in train.
        beta: In [0, 1).

    Returns:
        (C,) float64.

    Raises:
        ValueError: beta is out of its range, or a class has no positive.
    """
    if not 0 <= beta < 1:
        raise ValueError(f"class-balanced beta is {beta}; it must be in [0, 1)")
    # 1 - beta^n without cancellation; the factor 1 - beta falls out of the scaling.
    beyond = -torch.expm1(checked_counts(counts) * torch.tensor(beta, dtype=torch.float64).log())
    return len(counts) / beyond / (1 / beyond).sum()


class ClassBalancedBCE(nn.Module):
    """`w_c` times the binary cross-entropy of class c; sum over classes, mean over images.

    The paper weighs all sigmoids of a photo by its one class; with several labels a photo has no one class, so each
    class has the weight of its own count, positives and negatives alike.

    Args:
        counts: (C,) positives of each class in train.
        beta: In [0, 1).
        reduction: Over the classes of an image: `sum` or `mean` (over the number of classes, not over the weights).
    """

    def __init__(self, counts: Tensor, beta: float = 0.9999, reduction: str = "sum") -> None:
        super().__init__()
        self.reduction = check_reduction(reduction)
        self.weight: Tensor
        self.register_buffer("weight", class_balanced_weights(counts, beta).float(), persistent=False)

    def forward(self, logits: Tensor, targets: Tensor, known: Tensor | None = None) -> Tensor:
        """Loss of a batch: logits (N, C), targets (N, C) in {0, 1}, known (N, C) bool -> scalar."""
        logits = full_precision(logits)
        check_columns(logits, len(self.weight))
        terms = F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none")
        return over_classes(self.weight.to(logits.dtype) * terms, known, self.reduction).mean()


class ClassBalancedCE(nn.Module):
    """`w_y` times the cross-entropy of a photo of class y, mean over images; single-label.

    torch's own weighted mean divides by the weights of the batch; this one divides by the number of images, so that
    a photo's part does not depend on its neighbours.

    Args:
        counts: (C,) photos of each class in train.
        beta: In [0, 1).
    """

    def __init__(self, counts: Tensor, beta: float = 0.9999) -> None:
        super().__init__()
        self.weight: Tensor
        self.register_buffer("weight", class_balanced_weights(counts, beta).float(), persistent=False)

    def forward(self, logits: Tensor, targets: Tensor, known: Tensor | None = None) -> Tensor:
        """Loss of a batch: logits (N, C), targets (N, C) one-hot, known (N, C) all true or None -> scalar."""
        logits = full_precision(logits)
        check_columns(logits, len(self.weight))
        labels = class_indices(targets, known)
        terms = F.cross_entropy(logits, labels, reduction="none")
        return (self.weight.to(logits.dtype)[labels] * terms).mean()
