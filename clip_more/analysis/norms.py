"""Lengths of class means and of classifier rows against the rank of a class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Lengths that differ by less than this share of their mean are one length: a rank correlation would rank rounding.
_EQUAL = 1e-5


@dataclass(frozen=True)
class RankTrend:
    """A figure of each class against how common the class is.

    Attributes:
        values: (C,) float64, NaN where a class has none.
        spearman: Rank correlation of values and train counts: 1 where a commoner class always has more. None where
            fewer than three classes have a value, or all values or all counts are equal.
        p: Of no correlation, two-sided; None with `spearman`.
    """

    values: np.ndarray
    spearman: float | None
    p: float | None


def class_ranks(counts: np.ndarray) -> np.ndarray:
    """(C,) ranks by train count: 0 is the most common class; of equal counts the lower index comes first."""
    ranks = np.empty(len(counts), dtype=int)
    ranks[np.argsort(-np.asarray(counts, dtype=np.int64), kind="stable")] = np.arange(len(counts))
    return ranks


def rank_trend(values: np.ndarray, counts: np.ndarray) -> RankTrend:
    """Spearman's correlation of one value a class with its train count.

    Args:
        values: (C,), NaN where there is none.
        counts: (C,) positives in train.

    Raises:
        ValueError: Shapes disagree.
    """
    from scipy.stats import spearmanr

    values, counts = np.asarray(values, dtype=np.float64), np.asarray(counts)
    if values.shape != counts.shape or values.ndim != 1:
        raise ValueError(f"values have shape {values.shape} and counts {counts.shape}: both are (C,)")
    there = ~np.isnan(values)
    some = values[there]
    if len(some) < 3 or np.ptp(some) <= _EQUAL * np.abs(some).mean() or np.ptp(counts[there]) == 0:
        return RankTrend(values, None, None)
    found = spearmanr(some, counts[there])
    return RankTrend(values, float(found.statistic), float(found.pvalue))


def norm_trend(rows: np.ndarray, counts: np.ndarray) -> RankTrend:
    """`||row_c||` against train counts, of class means or classifier weights (C, D); NaN rows have no length."""
    return rank_trend(np.linalg.norm(np.asarray(rows, dtype=np.float64), axis=1), counts)
