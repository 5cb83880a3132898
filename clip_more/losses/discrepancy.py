"""The discrepancy loss L_MORE between the full model and its general part (MORE, arXiv 2510.08177)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_more.losses.asymmetric import Focus
from clip_more.losses.reduction import check_reduction, full_precision, over_classes
from clip_more.losses.sampling import Share

_CHOICES = {
    "weighting": ("label", "sample"),
    "sample_reduce": ("min", "mean", "max"),
    "distance": ("l2", "kl"),
    "gradient": ("both", "stop_full", "stop_general"),
}


class DiscrepancyLoss(nn.Module):
    """How far the tail moves the logits, weighted by how common the class is: `L_MORE = E[pi · M(x)]`.

    With `Delta = f(x; theta_g + theta_t) - f(x; theta_g)` on logits, the published single-label form is
    `mean over (x, y) of pi_y ||Delta||^2`. For several labels nothing is published; two forms are offered:

    - `label`: `mean over x of sum_c pi_c Delta_c^2`;
    - `sample`: `mean over x of w(x) ||Delta||^2`, w(x) a reduction of pi over the positives of x (0 without any).

    Nearly every photo with a tail label also has a head one, so only `sample` with `min` spares the tail photos.

    Args:
        counts: (C,) positives of each class in train.
        weighting: `label` or `sample`.
        sample_reduce: `min`, `mean` or `max` over an image's positives, for `sample`.
        prior_exponent: q in `pi_c = n_c^q / sum n^q`: 1 the prior, 0 uniform weights, below 0 inverse ones.
        distance: `l2`, or `kl` in place of Delta squared: `KL(sigmoid z_full || sigmoid z_general)` of each class.
        softmax: The base loss is one softmax over the classes: `kl` is then of the softmax, its term of class c being
            `p_c (log p_c - log q_c)`.
        reduction: Over the classes of an image: `sum` (published) or `mean`.
        scale_free: Divide both logits by the standard deviation of the full ones (no gradient through it), so that
            CLIP's logit scale does not set the strength.
        centred: Subtract Delta's mean over the classes of an image first: class prompts share a large direction.
        gradient: `stop_general`: L_MORE moves the full pass alone, so W_g learns less of what B A has taken up, and
            least of common classes; `general` may be made without a graph. `both` passes is the plain reading of the
            paper, which makes B A smaller and little else (docs/evidence.md); `stop_full` moves the general one alone.
        focus: Of the base loss ASL: the term of each image and class is multiplied by it, taken at the full logits,
            with no gradient through it.

    Raises:
        ValueError: On an unknown choice, a class without a positive, or centred together with kl.
    """

    def __init__(
        self,
        counts: Tensor,
        *,
        weighting: str = "label",
        sample_reduce: str = "min",
        prior_exponent: float = 1.0,
        distance: str = "l2",
        softmax: bool = False,
        reduction: str = "sum",
        scale_free: bool = False,
        centred: bool = False,
        gradient: str = "stop_general",
        focus: Focus | None = None,
    ) -> None:
        super().__init__()
        given = {
            "weighting": weighting,
            "sample_reduce": sample_reduce,
            "distance": distance,
            "gradient": gradient,
        }
        for key, value in given.items():
            if value not in _CHOICES[key]:
                raise ValueError(f"discrepancy {key} is {value!r}; choose one of {', '.join(_CHOICES[key])}")
        if (counts <= 0).any():
            empty = torch.nonzero(counts <= 0).flatten().tolist()
            raise ValueError(f"classes {empty} have no positive in train, so they have no prior")
        if centred and distance == "kl":
            raise ValueError("centred subtracts a mean from logit differences; it has no meaning for distance kl")
        if softmax and distance == "kl" and weighting == "label" and prior_exponent != 0:
            raise ValueError(
                "distance kl of a softmax is one figure a photo, whose terms by class may be negative: weighted by "
                "class they would reward a distance; set discrepancy_weighting: sample, or discrepancy_distance: l2"
            )
        self.weighting = weighting
        self.sample_reduce = sample_reduce
        self.distance = distance
        self.softmax = softmax
        self.reduction = check_reduction(reduction)
        self.scale_free = scale_free
        self.centred = centred
        self.gradient = gradient
        self.focus = focus
        weight = counts.double() ** prior_exponent
        self.prior: Tensor
        self.register_buffer("prior", (weight / weight.sum()).float(), persistent=False)

    def forward(
        self,
        full: Tensor,
        general: Tensor,
        targets: Tensor,
        known: Tensor | None = None,
        share: Share | None = None,
    ) -> Tensor:
        """L_MORE of a batch, before the amplitude alpha.

        Args:
            full: (N, C) logits with the tail.
            general: (N, C) logits without it; (n, k) with a share.
            targets: (N, C), 0 or 1.
            known: (N, C) bool; unknown entries count nowhere. All known without it.
            share: The photos and classes that `general` was taken on. L_MORE's expectation over shares is L_MORE of
                the whole batch.

        Returns:
            A scalar, fp32 or better.
        """
        share = share or Share()
        full, general = full_precision(full), full_precision(general)
        focus = None if self.focus is None else self.focus(full.detach(), targets)
        if self.gradient == "stop_full":
            full = full.detach()
        elif self.gradient == "stop_general":
            general = general.detach()
        if self.scale_free:
            entries = full.detach() if known is None else full.detach()[known]
            scale = entries.std(correction=0).clamp_min(1e-12) if entries.numel() else 1.0
            full, general = full / scale, general / scale
        rows = share.images
        if rows is not None:
            full, targets, known = full[rows], targets[rows], None if known is None else known[rows]
        distance = self._distance(share.columns(full), general, known)
        if focus is not None:
            distance = distance * share.columns(focus if rows is None else focus[rows])
        prior = self.prior.to(distance.dtype)
        if self.weighting == "label":
            return self._over_classes(share.columns(prior) * distance, known, share).mean()
        weights = self._sample_weights(prior, targets, known)
        return (weights * self._over_classes(distance, known, share)).mean()

    def class_weights(self) -> Tensor | None:
        """(C,) by which classes are best drawn for a share; None where all are needed."""
        if self.centred or (self.softmax and self.distance == "kl"):
            return None
        return self.prior if self.weighting == "label" else torch.ones_like(self.prior)

    def _over_classes(self, terms: Tensor, known: Tensor | None, share: Share) -> Tensor:
        """(n, k) terms to (n,), unbiased for all classes; `known` (n, C)."""
        if share.weights is None:
            return over_classes(terms, known, self.reduction)
        terms = terms * share.weights.to(terms.dtype)
        total = over_classes(terms, None if known is None else share.columns(known), "sum")
        if self.reduction == "sum":
            return total
        return total / (len(self.prior) if known is None else known.sum(dim=1).clamp_min(1))

    def _distance(self, full: Tensor, general: Tensor, known: Tensor | None) -> Tensor:
        """(N, C) terms: Delta squared, or those of the KL divergence."""
        delta = full - general
        if self.distance == "kl" and self.softmax:
            log_full, log_general = F.log_softmax(full, dim=1), F.log_softmax(general, dim=1)
            return log_full.exp() * (log_full - log_general)
        if self.distance == "kl":
            # log p - log(1 - p) = z and log(1 - p) = -softplus(z) give the KL without a logarithm of a probability.
            return torch.sigmoid(full) * delta - F.softplus(full) + F.softplus(general)
        if self.centred:
            delta = delta - over_classes(delta, known, "mean")[:, None]
        return delta.square()

    def _sample_weights(self, prior: Tensor, targets: Tensor, known: Tensor | None) -> Tensor:
        """(N,): reduction of the prior over each image's known positives, 0 without one."""
        positive = targets.to(torch.bool)
        if known is not None:
            positive = positive & known
        some = positive.any(dim=1)
        if self.sample_reduce == "mean":
            return (prior * positive).sum(dim=1) / positive.sum(dim=1).clamp_min(1)
        if self.sample_reduce == "min":
            extreme = torch.where(positive, prior, torch.inf).amin(dim=1)
        else:
            extreme = torch.where(positive, prior, -torch.inf).amax(dim=1)
        return torch.where(some, extreme, 0.0)
