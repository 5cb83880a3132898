"""Label-distribution-aware margins, with deferred re-weighting (LDAM-DRW, arXiv 1906.07413)."""

import torch.nn.functional as F
from torch import Tensor, nn

from clip_more.losses.class_balanced import class_balanced_weights
from clip_more.losses.class_counts import check_columns, checked_counts
from clip_more.losses.reduction import full_precision
from clip_more.losses.single_label import class_indices


class LdamLoss(nn.Module):
    """Cross-entropy of `scale (z - m_y [c = y])` with `m_c = max_margin (n_c / n_min)^(-1/4)` (equations 12 and 13).

    The rarest class has the margin `max_margin`, more common ones have less; mean over images; single-label.

    The logits are meant to be cosines in [-1, 1], which the loss multiplies by `scale` itself: a cosine head whose
    scale is held at 1. A cosine head that learns a scale s of its own fits with `scale` 1 and `max_margin` 0.5 s: as
    `30 (cos - 0.5) = 30 cos - 15`, this is the same loss where s is 30. With the defaults on such a head the two scales
    multiply and the margin shrinks to 0.5 / s of a cosine. On a linear head margins have no unit at all.

    Args:
        counts: (C,) photos of each class in train.
        max_margin: Margin of the rarest class.
        scale: Of margins and logits.
        defer: Share of the steps after which photos are weighted by class, `class_balanced_weights`; never without it.
            The paper: 0.8. `at` says how far the run is.
        beta: Of these weights.

    Raises:
        ValueError: A number is out of its range, or a class has no photo.
    """

    def __init__(
        self,
        counts: Tensor,
        max_margin: float = 0.5,
        scale: float = 30.0,
        defer: float | None = None,
        beta: float = 0.9999,
    ) -> None:
        super().__init__()
        if not max_margin >= 0 or not scale > 0:
            raise ValueError(f"ldam takes a max_margin >= 0 and a scale > 0; got {max_margin} and {scale}")
        if defer is not None and not 0 <= defer <= 1:
            raise ValueError(f"ldam defer is {defer}, but a share of the steps lies in [0, 1]")
        checked = checked_counts(counts)
        self.scale = scale
        self.defer = defer
        self.progress = 0.0
        self.margin: Tensor
        self.register_buffer("margin", (max_margin * (checked / checked.min()) ** -0.25).float(), persistent=False)
        self.weight: Tensor
        self.register_buffer("weight", class_balanced_weights(counts, beta).float(), persistent=False)

    def at(self, progress: float) -> None:
        """Say before a step which share of the steps is done; from `defer` on photos are weighted by class."""
        self.progress = progress

    def forward(self, logits: Tensor, targets: Tensor, known: Tensor | None = None) -> Tensor:
        """Loss of a batch: logits (N, C), cosines; targets (N, C) one-hot; known (N, C) all true or None -> scalar."""
        logits = full_precision(logits)
        check_columns(logits, len(self.margin))
        labels = class_indices(targets, known)
        margins = self.margin.to(logits.dtype) * targets.to(logits.dtype)
        terms = F.cross_entropy(self.scale * (logits - margins), labels, reduction="none")
        if self.defer is not None and self.progress >= self.defer:
            terms = self.weight.to(logits.dtype)[labels] * terms
        return terms.mean()
