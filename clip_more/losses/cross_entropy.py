"""Cross-entropy of one softmax over the classes, plain, focal, and with logits shifted by the prior; single-label."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_more.losses.class_counts import check_columns, checked_counts
from clip_more.losses.focal import check_gamma
from clip_more.losses.reduction import full_precision
from clip_more.losses.single_label import class_indices


class CrossEntropy(nn.Module):
    """`-log p_y` with `p = softmax(z)`; mean over images."""

    def forward(self, logits: Tensor, targets: Tensor, known: Tensor | None = None) -> Tensor:
        """Loss of a batch: logits (N, C), targets (N, C) one-hot, known (N, C) all true or None -> scalar."""
        return F.cross_entropy(full_precision(logits), class_indices(targets, known))


class FocalCrossEntropy(nn.Module):
    """`-(1 - p_y)^gamma log p_y` with `p = softmax(z)`; mean over images (focal loss, arXiv 1708.02002).

    Args:
        gamma: Focusing; at 0 the loss is the cross-entropy.
    """

    def __init__(self, gamma: float = 2.0) -> None:
        super().__init__()
        self.gamma = check_gamma(gamma)

    def forward(self, logits: Tensor, targets: Tensor, known: Tensor | None = None) -> Tensor:
        """Loss of a batch: logits (N, C), C > 1; targets (N, C) one-hot; known (N, C) all true or None -> scalar."""
        log_p = F.log_softmax(full_precision(logits), dim=1)
        own = F.one_hot(class_indices(targets, known), logits.shape[1]).to(torch.bool)
        # log(1 - p_y) from the other classes: exact where p_y is nearly 1.
        log_rest = torch.logsumexp(log_p.masked_fill(own, -torch.inf), dim=1)
        return -(torch.exp(self.gamma * log_rest) * log_p[own]).mean()


class LogitAdjustedCE(nn.Module):
    """Cross-entropy of `z + tau log pi`, pi the prior of the classes; mean over images (arXiv 2007.07314, equation 10).

    The shift is for training alone: the plain logits are then those of balanced classes. At tau 1 this is
    `BalancedSoftmax`.

    Args:
        counts: (C,) photos of each class in train.
        tau: Strength; at 0 the loss is the cross-entropy.
    """

    def __init__(self, counts: Tensor, tau: float = 1.0) -> None:
        super().__init__()
        if not tau >= 0:
            raise ValueError(f"logit adjustment tau is {tau}; it must be >= 0")
        counts = checked_counts(counts)
        self.shift: Tensor
        self.register_buffer("shift", (tau * (counts / counts.sum()).log()).float(), persistent=False)

    def forward(self, logits: Tensor, targets: Tensor, known: Tensor | None = None) -> Tensor:
        """Loss of a batch: logits (N, C), targets (N, C) one-hot, known (N, C) all true or None -> scalar."""
        logits = full_precision(logits)
        check_columns(logits, len(self.shift))
        return F.cross_entropy(logits + self.shift.to(logits.dtype), class_indices(targets, known))


class BalancedSoftmax(LogitAdjustedCE):
    """`-log(n_y e^z_y / sum_j n_j e^z_j)`; mean over images (arXiv 2007.10740).

    The same loss as `LogitAdjustedCE` at tau 1, found in the same year from another side: a softmax does not see the
    constant between log n and log pi.

    Args:
        counts: (C,) photos of each class in train.
    """

    def __init__(self, counts: Tensor) -> None:
        super().__init__(counts, tau=1.0)
