"""The train counts of classes, checked, for losses that weigh or shift classes by them."""

import torch
from torch import Tensor


def checked_counts(counts: Tensor) -> Tensor:
    """Train positives of each class, (C,), as float64 on the CPU.

    Raises:
        ValueError: Counts are not one number a class, or a class has no positive.
    """
    if counts.dim() != 1 or len(counts) == 0:
        raise ValueError(f"counts must be one number a class, (C,); got shape {tuple(counts.shape)}")
    if not bool((counts > 0).all()):
        empty = torch.nonzero(~(counts > 0)).flatten().tolist()
        raise ValueError(f"classes {empty} have no positive in train, so no weight follows from their count")
    return counts.detach().cpu().double()


def check_columns(logits: Tensor, classes: int) -> None:
    """Refuse logits (N, k) of another number of classes than the loss has counts for.

    Raises:
        ValueError: k is not `classes`.
    """
    if logits.shape[1] != classes:
        raise ValueError(
            f"logits have {logits.shape[1]} classes and the loss has counts of {classes}; a loss that goes by counts "
            "needs all classes, in the order of the counts"
        )
