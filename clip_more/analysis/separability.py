"""Fisher's discriminant ratio: how far class means lie apart, measured in the spread within classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve, eigh

from clip_more.analysis.moments import check_features, class_means, numerical_rank, total_scatter, within_scatter

RIDGE = 1e-4


@dataclass(frozen=True)
class Fisher:
    """`Tr(S_W^-1 S_B)` and what it rests on.

    Attributes:
        ratio: The ratio; of one-vs-rest the mean over the classes that have one. NaN where there is none.
        by_class: (C,) one-vs-rest ratios, NaN for a class without positives or without negatives; None where all
            classes are taken at once.
        ridge: `ridge * Tr(S_W) / D` is added to the diagonal of S_W.
        rank: Of S_W without the ridge; of one-vs-rest of the scatter of all photos.
        size: D, what the rank is out of.
    """

    ratio: float
    by_class: np.ndarray | None
    ridge: float
    rank: int
    size: int


def fisher_ratio(features: np.ndarray, labels: np.ndarray, classes: int, ridge: float = RIDGE) -> Fisher:
    """Fisher's discriminant ratio over all classes at once, for photos with one label each.

    `S_W = sum_i (x_i - mu_{y_i})(x_i - mu_{y_i})^T`, `S_B = sum_c n_c (mu_c - mu)(mu_c - mu)^T` (Fisher 1936; used on
    long-tailed features by Hasegawa and Sato, ICLR 2024). Any invertible linear map of the features leaves it as it is
    where the ridge is 0.

    Args:
        features: (N, D).
        labels: (N,) class indices below `classes`.
        classes: C; those without a photo take no part.
        ridge: Relative to the mean eigenvalue of S_W; 0 needs an S_W of full rank.

    Raises:
        ValueError: Shapes disagree, fewer than two classes have photos, S_W is zero, or it is singular and `ridge` 0.
    """
    targets = labels[:, None] == np.arange(classes)
    means, counts = class_means(features, targets)
    there = np.flatnonzero(counts)
    if len(there) < 2:
        raise ValueError(f"Fisher's ratio needs photos of two classes at least; there are {len(there)}")
    within, size = within_scatter(features, labels, means), features.shape[1]
    rank = numerical_rank(within)
    _check_invertible(within, rank, ridge)
    offsets = means[there] - (counts[there] @ means[there]) / counts.sum()
    factor = cho_factor(within + ridge * np.trace(within) / size * np.eye(size))
    ratio = float((counts[there, None] * offsets * cho_solve(factor, offsets.T).T).sum())
    return Fisher(ratio, None, ridge, rank, size)


def fisher_one_vs_rest(
    features: np.ndarray, targets: np.ndarray, known: np.ndarray | None = None, ridge: float = RIDGE
) -> Fisher:
    """Fisher's ratio of each class against the rest, for photos with any number of labels, and their macro mean.

    S_B has rank one here, `b d d^T` with `d = mu_+ - mu_-` and `b = n_+ n_- / N`, and `S_T = S_W + S_B` is one matrix
    for all classes; with `q = d^T (S_T + r I)^-1 d` the ratio is `b q / (1 - b q)` (Sherman and Morrison). A class with
    unknown labels gets a scatter of its own, over the photos in which it is known.

    Args:
        features: (N, D).
        targets: (N, C) bool.
        known: (N, C) bool; all known without it.
        ridge: As in :func:`fisher_ratio`, relative to the mean eigenvalue of each class's own S_W.

    Raises:
        ValueError: Shapes disagree, or a scatter is singular and `ridge` 0.
    """
    check_features(features, targets)
    scatter = total_scatter(features)
    rank = numerical_rank(scatter[1])
    _check_invertible(scatter[1], rank, ridge)
    shared = eigh(scatter[1])
    means, counts = class_means(features, targets)
    by_class = np.full(targets.shape[1], np.nan)
    for c in np.flatnonzero(counts):
        mean, (values, vectors), photos = scatter[0], shared, len(features)
        if known is not None and not known[:, c].all():
            mean, own = total_scatter(features[known[:, c]])
            (values, vectors), photos = eigh(own), int(known[:, c].sum())
        if counts[c] == photos:
            continue
        difference = (means[c] - mean) * photos / (photos - counts[c])  # mu_+ - mu_-, from mu_+ and mu
        weight = counts[c] * (photos - counts[c]) / photos
        within = max(values.sum() - weight * (difference @ difference), 0.0)
        added = ridge * within / len(values)
        if added == 0 and values[0] <= len(values) * np.finfo(np.float64).eps * values[-1]:
            continue  # no spread within the class and the rest, or none in some direction
        explained = weight * ((vectors.T @ difference) ** 2 / (np.maximum(values, 0.0) + added)).sum()
        by_class[c] = explained / max(1.0 - explained, np.finfo(np.float64).eps)
    there = by_class[~np.isnan(by_class)]
    return Fisher(float(there.mean()) if len(there) else float("nan"), by_class, ridge, rank, features.shape[1])


def _check_invertible(scatter: np.ndarray, rank: int, ridge: float) -> None:
    if ridge < 0:
        raise ValueError(f"ridge is {ridge}; it must be 0 or more")
    if np.trace(scatter) <= 0:
        raise ValueError("photos do not differ within classes (S_W is 0), so Fisher's ratio has no finite value")
    if ridge == 0 and rank < len(scatter):
        raise ValueError(f"S_W has rank {rank} of {len(scatter)}, so it has no inverse; take a ridge above 0")
