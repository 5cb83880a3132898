"""Cosines between the features of classes: the heatmap of the papers on weight balancing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clip_more.analysis.moments import blocks, class_means, unit_rows


@dataclass(frozen=True)
class Cosines:
    """Cosines between classes, all (C, C) float64 and symmetric, NaN where a class has no photo (or no other pair).

    Attributes:
        pairs: Mean cosine of a photo of one class and a photo of the other, a photo with itself included.
        other_pairs: The same without the pairs of a photo with itself. On the diagonal there are as many of them as the
            class has photos; off it as many as photos have both labels.
        of_means: Cosine of the classes' mean unit features: 1 on the diagonal.
    """

    pairs: np.ndarray
    other_pairs: np.ndarray
    of_means: np.ndarray


def class_cosines(features: np.ndarray, targets: np.ndarray) -> Cosines:
    """Mean cosines between the photos of any two classes (the heatmaps of Hasegawa and Sato, ICLR 2024).

    With `m_c` the mean of the *unit* features of class c, the mean over all `n_a n_b` pairs is `<m_a, m_b>`, so nothing
    of size (N, N) is made; without self-pairs it is `(n_a n_b <m_a, m_b> - n_ab) / (n_a n_b - n_ab)`, n_ab being the
    photos with both labels. The length of features does not matter.

    Args:
        features: (N, D).
        targets: (N, C) bool; a photo counts in each of its classes.

    Raises:
        ValueError: Shapes disagree, or a feature is not finite.
    """
    means, counts = class_means(unit_rows(features), targets)
    pairs = means @ means.T
    number = np.outer(counts, counts).astype(np.float64)
    both = np.zeros_like(pairs)
    for rows in blocks(len(targets)):
        labels = targets[rows].astype(np.float32)  # exact: a block is far below 2^24 photos
        both += labels.T @ labels
    others = np.full_like(pairs, np.nan)
    np.divide(number * pairs - both, number - both, out=others, where=number > both)
    lengths = np.sqrt(np.diag(pairs))
    with np.errstate(invalid="ignore", divide="ignore"):
        of_means = pairs / np.outer(lengths, lengths)
    return Cosines(pairs, others, np.clip(of_means, -1.0, 1.0))


def diagonal_and_rest(matrix: np.ndarray) -> tuple[float, float]:
    """Means over the diagonal of a (C, C) matrix and over the rest, NaN left out; NaN where nothing is left."""
    on = np.eye(len(matrix), dtype=bool)
    return _mean(matrix[on]), _mean(matrix[~on])


def _mean(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")
