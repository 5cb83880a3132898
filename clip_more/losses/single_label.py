"""From one-hot targets to class indices, for losses with one softmax over the classes."""

import torch
from torch import Tensor


def class_indices(targets: Tensor, known: Tensor | None = None) -> Tensor:
    """The class of each photo.

    Args:
        targets: (N, C), 0 or 1, exactly one 1 in each row.
        known: (N, C) bool, or weights that are 0 where unknown; all known without it.

    Returns:
        (N,) int64.

    Raises:
        ValueError: A row has another number of positives than one, or an unknown label; it is named.
    """
    positive = targets != 0
    positives = positive.sum(dim=1)
    if not bool((positives == 1).all()):
        row = int(torch.nonzero(positives != 1)[0])
        raise ValueError(
            f"row {row} of the batch has {int(positives[row])} positive labels, and a loss with one softmax over the "
            "classes takes exactly one; choose a loss with one sigmoid a class (bce, asl, focal, cb_bce, db, db_focal)"
        )
    if known is not None and not bool((known != 0).all()):
        row = int(torch.nonzero((known == 0).any(dim=1))[0])
        raise ValueError(
            f"row {row} of the batch has {int((known[row] == 0).sum())} unknown labels, and a loss with one softmax "
            "over the classes needs all of them; choose a loss with one sigmoid a class (bce, asl, focal, cb_bce, db, "
            "db_focal)"
        )
    return positive.int().argmax(dim=1)
