"""Means and scatter matrices of features by class, in float64 and block by block: nothing of size (N, N) is made."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

BLOCK = 4096  # photos held as float64 at once


def blocks(count: int) -> Iterator[slice]:
    """Slices of at most `BLOCK` rows that cover `count` rows."""
    for start in range(0, count, BLOCK):
        yield slice(start, min(start + BLOCK, count))


def check_features(features: np.ndarray, targets: np.ndarray) -> None:
    """Refuse arrays that are not features (N, D) and targets (N, C) of the same photos.

    Raises:
        ValueError: Shapes disagree, or a feature is not finite.
    """
    if features.ndim != 2 or targets.ndim != 2 or len(features) != len(targets):
        raise ValueError(
            f"features have shape {features.shape} and targets {targets.shape}: (N, D) and (N, C) are needed, one row "
            "a photo in both"
        )
    for rows in blocks(len(features)):
        if not np.isfinite(features[rows]).all():
            raise ValueError("features are not finite: the model is broken, so nothing is measured on them")


def class_means(features: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean feature of the positives of each class.

    Args:
        features: (N, D).
        targets: (N, C) bool; a photo counts in each of its classes.

    Returns:
        means (C, D) float64, NaN for a class without a positive, and positives (C,) int.
    """
    check_features(features, targets)
    sums = np.zeros((targets.shape[1], features.shape[1]))
    for rows in blocks(len(features)):
        sums += targets[rows].T.astype(np.float64) @ features[rows].astype(np.float64)
    counts = targets.sum(axis=0, dtype=np.int64)
    means = np.full_like(sums, np.nan)
    np.divide(sums, counts[:, None], out=means, where=counts[:, None] > 0)
    return means, counts


def total_scatter(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and scatter `sum_i (x_i - mean)(x_i - mean)^T` (D, D) of features (N, D), float64."""
    mean = np.zeros(features.shape[1])
    for rows in blocks(len(features)):
        mean += features[rows].sum(axis=0, dtype=np.float64)
    mean /= max(len(features), 1)
    scatter = np.zeros((len(mean), len(mean)))
    for rows in blocks(len(features)):
        centred = features[rows].astype(np.float64) - mean
        scatter += centred.T @ centred
    return mean, scatter


def within_scatter(
    features: np.ndarray, labels: np.ndarray, means: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Scatter around the own class mean, `sum_i w_{y_i} (x_i - mu_{y_i})(x_i - mu_{y_i})^T`: (D, D) float64.

    Args:
        features: (N, D).
        labels: (N,) class indices.
        means: (C, D).
        weights: (C,) of the photos of each class; 1 without them.
    """
    scatter = np.zeros((features.shape[1], features.shape[1]))
    for rows in blocks(len(features)):
        centred = features[rows].astype(np.float64) - means[labels[rows]]
        weighted = centred if weights is None else centred * weights[labels[rows], None]
        scatter += centred.T @ weighted
    return scatter


def numerical_rank(scatter: np.ndarray) -> int:
    """Eigenvalues of a symmetric (D, D) matrix above `D eps` times the largest."""
    values = np.linalg.eigvalsh(scatter)
    return int((values > len(values) * np.finfo(np.float64).eps * max(values.max(initial=0.0), 0.0)).sum())


def unit_rows(features: np.ndarray) -> np.ndarray:
    """Rows (N, D) brought to unit length, in their own precision (float32 or better); a row of zeros stays."""
    features = features if features.dtype in (np.float32, np.float64) else features.astype(np.float32)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), np.finfo(features.dtype).tiny)
