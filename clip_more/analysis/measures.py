"""All figures of the analysis from arrays: plain values, as `measures_<split>.json` holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from clip_more.analysis.collapse import collapse
from clip_more.analysis.mechanism import Contrast, Discrepancy, verdict
from clip_more.analysis.moments import class_means
from clip_more.analysis.norms import RankTrend, norm_trend, rank_trend
from clip_more.analysis.separability import fisher_one_vs_rest, fisher_ratio
from clip_more.analysis.similarity import Cosines, class_cosines, diagonal_and_rest
from clip_more.analysis.tail_layers import LayerShare
from clip_more.data.profile import GROUPS, ClassProfile

MOST_CELLS = 400  # of a side of the heatmap that is kept; with more classes neighbours in rank share a cell


def feature_measures(
    features: np.ndarray,
    targets: np.ndarray,
    profile: ClassProfile,
    *,
    known: np.ndarray | None = None,
    inputs: np.ndarray | None = None,
    weight: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    single_label: bool = False,
) -> dict[str, Any]:
    """Separability, cosines, norms and collapse of one model's features.

    Args:
        features: (N, D) as the encoder gives them: their lengths are measured.
        targets: (N, C) bool.
        profile: Names, counts, groups.
        known: (N, C) bool.
        inputs: (N, D) as the head reads them, at unit length, say: what all else is measured on; `features` without it.
        weight: (C, D) rows of the classifier; what needs them is left out without it.
        bias: (C,).
        single_label: Every photo has one label: Fisher's ratio is taken over all classes at once, too.

    Returns:
        Plain values, None where there is none.
    """
    inputs = features if inputs is None else inputs
    counts = np.asarray(profile.counts)
    found: dict[str, Any] = {"photos": len(features), "dimensions": features.shape[1]}
    one = fisher_one_vs_rest(inputs, targets, known)
    found["fisher"] = {"one_vs_rest": {**asdict(one), "by_group": by_group(one.by_class, profile)}}
    if single_label:
        found["fisher"]["all_classes"] = asdict(fisher_ratio(inputs, targets.argmax(axis=1), len(counts)))
    found["cosines"] = _cosines(class_cosines(inputs, targets), profile)
    means, positives = class_means(features, targets)
    found["positives"] = positives
    found["feature_norm"] = _trend(norm_trend(means, counts))
    if weight is not None:
        found["classifier_norm"] = _trend(norm_trend(weight, counts))
        signs = collapse(inputs, targets, weight, bias)
        found["collapse"] = None if signs is None else {**asdict(signs), "classes": len(signs.classes)}
    if bias is not None:
        found["classifier_bias"] = _trend(rank_trend(np.asarray(bias, dtype=np.float64), counts))
    return plain(found)


def mechanism_measures(
    discrepancy: Discrepancy, contrasts: Mapping[str, Contrast], *, single_label: bool, moved: bool = False
) -> dict[str, Any]:
    """What `mechanism` found, as plain values, with its verdict.

    Args:
        discrepancy: From `mechanism`.
        contrasts: From `mechanism`.
        single_label: Accuracy in place of average precision.
        moved: L_MORE moved the general part, too: there is no verdict then.
    """
    found: dict[str, Any] = {name: asdict(contrast) for name, contrast in contrasts.items()}
    found["relative_discrepancy"] = discrepancy.relative
    found["lost_is"] = "accuracy" if single_label else "average precision"
    found["general_part_moved"] = moved
    found["verdict"] = None if moved else verdict(dict(contrasts))
    return plain(found)


def layer_measures(layers: Sequence[LayerShare]) -> list[dict[str, Any]]:
    """Tail shares as plain values."""
    return [asdict(layer) for layer in layers]


def by_group(values: np.ndarray | None, profile: ClassProfile) -> dict[str, float | None]:
    """Means of (C,) over the classes of each group, NaN left out; None without one."""
    means: dict[str, float | None] = {}
    for group in GROUPS:
        own = np.array([]) if values is None else values[profile.indices(group)]
        own = own[~np.isnan(own)]
        means[group] = float(own.mean()) if len(own) else None
    return means


def plain(value: Any) -> Any:
    """Arrays as lists, numbers that are not finite as None: what strict JSON can hold."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def _trend(trend: RankTrend) -> dict[str, Any]:
    return {"by_class": trend.values, "spearman": trend.spearman, "p": trend.p}


def _cosines(cosines: Cosines, profile: ClassProfile) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("pairs", "other_pairs", "of_means"):
        diagonal, rest = diagonal_and_rest(getattr(cosines, name))
        found[name] = {"diagonal": diagonal, "off_diagonal": rest}
    found["between_groups"] = _between_groups(cosines.other_pairs, profile)
    order = np.argsort(-np.asarray(profile.counts), kind="stable")
    found["heatmap"] = np.round(_shrunk(cosines.other_pairs[np.ix_(order, order)]), 4)
    found["heatmap_classes"] = "by train count, the most common first"
    return found


def _between_groups(matrix: np.ndarray, profile: ClassProfile) -> dict[str, float | None]:
    """Mean of a (C, C) matrix off its diagonal over every two groups, such as `head-tail`."""
    found: dict[str, float | None] = {}
    for a, first in enumerate(GROUPS):
        for second in GROUPS[a:]:
            rows, columns = profile.indices(first), profile.indices(second)
            part = matrix[np.ix_(rows, columns)].copy()
            if first == second:
                np.fill_diagonal(part, np.nan)
            part = part[~np.isnan(part)]
            found[f"{first}-{second}"] = float(part.mean()) if part.size else None
    return found


def _shrunk(matrix: np.ndarray) -> np.ndarray:
    """A (C, C) matrix of at most `MOST_CELLS` cells a side, each the mean of a block, NaN left out."""
    if len(matrix) <= MOST_CELLS:
        return matrix
    edges = np.linspace(0, len(matrix), MOST_CELLS + 1).astype(int)[:-1]
    there = ~np.isnan(matrix)

    def sums(values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(np.add.reduceat(values, edges, axis=0), edges, axis=1)

    numbers = sums(there.astype(np.float64))
    shrunk = np.full(numbers.shape, np.nan)
    np.divide(sums(np.where(there, matrix, 0.0)), numbers, out=shrunk, where=numbers > 0)
    return shrunk
