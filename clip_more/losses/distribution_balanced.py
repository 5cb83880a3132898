"""Distribution-balanced loss for several labels a photo (DB and DB-focal, arXiv 2007.09654)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_more.losses.class_counts import check_columns, checked_counts
from clip_more.losses.focal import check_gamma, focus
from clip_more.losses.reduction import check_reduction, full_precision, over_classes


class DistributionBalancedLoss(nn.Module):
    """Re-balanced weights times a binary cross-entropy lenient on negatives; sum over classes, mean over images.

    With a, b, g, l and kappa for `smoothing_alpha`, `smoothing_beta`, `smoothing_mu`, `negative_scale` and `init_bias`:

    - Weights (equations 3 to 5): `w_k = a + sigmoid(b (r_k - g))`, with r_k = (1 / n_k) over the sum of 1 / n_j of the
      photo's positives j: how often the photo is wanted for class k over how often it comes when classes are drawn
      alike. Positive and negative terms have them alike.
    - Lenient terms (equations 7 and 10): `y log(1 + e^-(z - v)) + (1 / l) (1 - y) log(1 + e^(l (z - v)))`, with
      `v_k = -kappa b_k = kappa log(1 / p_k - 1)` (equation 9) and `p_k = n_k / photos`: above 0 for classes that fewer
      than half of the photos have.
    - DB-focal: each term times `2 (1 - p_t)^gamma`, p_t from the shifted and scaled logit; the factor takes part in the
      gradient.

    Two errata, both acknowledged by the authors in their code's issues: the exponents of equations 7 and 10 were first
    printed with the wrong sign, and the released code divides the shift v by l, which makes kappa l times smaller than
    the paper says. Here the signs are the right ones, and v is the equations': to repeat a figure of the released code
    give kappa / l. The paper's factor 1 / C is `reduction: mean`.

    The published defaults: VOC-MLT a 0.1, b 10, g 0.3, l 5, kappa 0.05 (the ones here); COCO-MLT g 0.2 and l 2. The
    weights are made for the sampler that draws classes alike (`distribution_balanced`, `class_aware`).

    The choices that the paper leaves open: a photo without a known positive has an infinite r, so its weight is the
    limit a + 1 (a + 1/2 at b = 0); p is kept within [1/2, photos - 1/2] / photos, so that v is finite.

    Args:
        counts: (C,) positives of each class in train.
        photos: Number of train photos.
        focal: DB-focal.
        smoothing_alpha: a, the least weight.
        smoothing_beta: b, how steeply the weight rises with r.
        smoothing_mu: g, the r at which it rises most steeply.
        negative_scale: l, above 0. The gradient of a negative is `w sigmoid(l (z - v))`: the larger l, the sooner it
            vanishes below v.
        init_bias: kappa.
        gamma: Focusing of DB-focal.
        reduction: Over the classes of an image: `sum` or `mean`.

    Raises:
        ValueError: A number is out of its range, a class has no positive, or more positives than there are photos.
    """

    def __init__(
        self,
        counts: Tensor,
        photos: int,
        *,
        focal: bool = False,
        smoothing_alpha: float = 0.1,
        smoothing_beta: float = 10.0,
        smoothing_mu: float = 0.3,
        negative_scale: float = 5.0,
        init_bias: float = 0.05,
        gamma: float = 2.0,
        reduction: str = "sum",
    ) -> None:
        super().__init__()
        counts = checked_counts(counts)
        if counts.max() > photos:
            raise ValueError(f"class {int(counts.argmax())} has {int(counts.max())} positives, but photos is {photos}")
        if not negative_scale > 0:
            raise ValueError(f"negative_scale is {negative_scale}; it must be above 0")
        if not smoothing_alpha >= 0 or not smoothing_beta >= 0:
            raise ValueError(
                f"smoothing_alpha and smoothing_beta must be >= 0; got {smoothing_alpha} and {smoothing_beta}"
            )
        self.focal = focal
        self.smoothing_alpha = smoothing_alpha
        self.smoothing_beta = smoothing_beta
        self.smoothing_mu = smoothing_mu
        self.negative_scale = negative_scale
        self.gamma = check_gamma(gamma)
        self.reduction = check_reduction(reduction)
        share = counts.clamp(0.5, photos - 0.5) / photos
        self.shift: Tensor
        self.register_buffer("shift", (init_bias * (1 / share - 1).log()).float(), persistent=False)
        self.inverse: Tensor  # over the largest: r does not change, and no sum is tiny
        self.register_buffer("inverse", (counts.min() / counts).float(), persistent=False)

    def forward(self, logits: Tensor, targets: Tensor, known: Tensor | None = None) -> Tensor:
        """Loss of a batch: logits (N, C), targets (N, C) in {0, 1}, known (N, C) bool -> scalar."""
        logits = full_precision(logits)
        check_columns(logits, len(self.shift))
        positive = targets.to(torch.bool)
        shifted = logits - self.shift.to(logits.dtype)
        signed = torch.where(positive, shifted, -self.negative_scale * shifted)
        terms = -F.logsigmoid(signed)
        terms = torch.where(positive, terms, terms / self.negative_scale)
        if self.focal:
            terms = 2 * focus(signed, self.gamma) * terms
        known_positive = positive if known is None else positive & (known != 0)
        return over_classes(self.weights(known_positive, logits.dtype) * terms, known, self.reduction).mean()

    def weights(self, positive: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """`w` of photos with these known positives: (N, C) bool -> (N, C)."""
        inverse = self.inverse.to(dtype)
        often = (positive * inverse).sum(dim=1, keepdim=True)
        # Without a positive r is infinite; any huge number has the same sigmoid, and 0 times it is 0.
        ratio = inverse / torch.where(often > 0, often, 1e-30)
        return self.smoothing_alpha + torch.sigmoid(self.smoothing_beta * (ratio - self.smoothing_mu))
