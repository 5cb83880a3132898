"""Neural collapse: NC1 to NC4 of Papyan, Han and Donoho (PNAS 2020)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clip_more.analysis.moments import blocks, class_means, within_scatter


@dataclass(frozen=True)
class Collapse:
    """The four signs; all fall to 0 as features collapse, but for `nc4`, which rises to 1.

    Attributes:
        nc1: `Tr(S_W S_B^+) / C`: spread within classes over spread between their means.
        nc2_norms: Standard deviation over mean of the lengths of the centred class means.
        nc2_angles: Mean distance of their cosines from -1 / (C - 1), those of a simplex.
        nc3: `|| W / ||W|| - M / ||M|| ||_F^2`, of the classifier and the centred class means M.
        nc3_centred: The same with the mean row of W subtracted: what all classes share moves no decision between them.
        nc4: Share of photos for which the classifier and the nearest class mean decide alike.
        classes: Indices of the classes that took part.
        photos: Number of photos that took part.
    """

    nc1: float
    nc2_norms: float
    nc2_angles: float
    nc3: float
    nc3_centred: float
    nc4: float
    classes: np.ndarray
    photos: int


def collapse(
    features: np.ndarray, targets: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None
) -> Collapse | None:
    """NC1 to NC4 of features and a linear classifier, in float64.

    Papyan et al. assume as many photos of each class. Here each class weighs the same whatever its count: the global
    mean is the mean of class means, and S_W the mean of the classes' covariances. On balanced data that is theirs.

    They are defined for one label a photo. Of photos with several labels none is taken: only those with exactly one
    label count, and only classes that have such a photo.

    Args:
        features: (N, D) as the classifier reads them.
        targets: (N, C) bool.
        weight: (C, D) rows of the classifier.
        bias: (C,); 0 without it.

    Returns:
        None where fewer than two classes have a photo with one label, or all class means are one point.

    Raises:
        ValueError: Shapes disagree.
    """
    if weight.shape != (targets.shape[1], features.shape[1]):
        raise ValueError(
            f"the classifier's weight has shape {weight.shape}, but (C, D) is {(targets.shape[1], features.shape[1])}"
        )
    single = np.flatnonzero(targets.sum(axis=1) == 1)
    classes = np.flatnonzero(targets[single].any(axis=0))
    if len(classes) < 2:
        return None
    own, labels = features[single], np.searchsorted(classes, targets[single].argmax(axis=1))
    w = np.asarray(weight, dtype=np.float64)[classes]
    b = np.zeros(len(classes)) if bias is None else np.asarray(bias, dtype=np.float64)[classes]
    means, counts = class_means(own, targets[single][:, classes])
    centred = means - means.mean(axis=0)
    between = centred.T @ centred / len(classes)
    if np.trace(between) == 0:
        return None
    within = within_scatter(own, labels, means, 1 / counts) / len(classes)
    lengths = np.linalg.norm(centred, axis=1)
    cosines = (centred @ centred.T) / np.maximum(np.outer(lengths, lengths), np.finfo(float).tiny)
    apart = np.abs(cosines[~np.eye(len(classes), dtype=bool)] + 1 / (len(classes) - 1))
    return Collapse(
        nc1=float(np.trace(within @ np.linalg.pinv(between, rcond=1e-10, hermitian=True)) / len(classes)),
        nc2_norms=float(lengths.std() / lengths.mean()),
        nc2_angles=float(apart.mean()),
        nc3=_self_dual(w, centred),
        nc3_centred=_self_dual(w - w.mean(axis=0), centred),
        nc4=_agreement(own, w, b, means),
        classes=classes,
        photos=len(single),
    )


def _self_dual(weight: np.ndarray, means: np.ndarray) -> float:
    """Squared Frobenius distance of two matrices (C, D), each brought to norm 1."""
    parts = [matrix / max(float(np.linalg.norm(matrix)), np.finfo(float).tiny) for matrix in (weight, means)]
    return float(((parts[0] - parts[1]) ** 2).sum())


def _agreement(features: np.ndarray, weight: np.ndarray, bias: np.ndarray, means: np.ndarray) -> float:
    """Share of photos whose highest logit and nearest mean (C, D) are of one class."""
    alike = 0
    for rows in blocks(len(features)):
        x = features[rows].astype(np.float64)
        # ||x - m||^2 without ||x||^2, which is the same for all classes
        nearest = ((means**2).sum(axis=1) - 2 * x @ means.T).argmin(axis=1)
        alike += int(((x @ weight.T + bias).argmax(axis=1) == nearest).sum())
    return alike / len(features)
