"""Average precision, class by class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BLOCK = 64  # classes copied at once, so that scores may be a memory map far larger than memory


def average_precision(
    targets: np.ndarray,
    scores: np.ndarray,
    known: np.ndarray | None = None,
    *,
    names: Sequence[str] | None = None,
) -> np.ndarray:
    """Average precision of every class: scikit-learn's ``average_precision_score`` on one column at a time.

    Hand in fp32 logits. A sigmoid in fp32 saturates and bf16 logits are coarse; both make ties, and ties move AP.

    Args:
        targets: ``(N, C)``, 0 or 1.
        scores: ``(N, C)``, higher is more likely; any real NumPy array, memory maps included.
        known: ``(N, C)`` bool; pairs that are not known are left out of their class. ``None``: all are known.
        names: ``(C,)`` class names for messages.

    Returns:
        ``(C,)`` float64, NaN for a class without a (known) positive: it has no AP.

    Raises:
        ValueError: Shapes disagree, a target is neither 0 nor 1, or a score is not finite.
    """
    from sklearn.metrics import average_precision_score

    targets, known = check_targets(targets, known, names=names)
    scores = np.asanyarray(scores)
    if scores.shape != targets.shape:
        raise ValueError(f"scores have shape {scores.shape}, but targets have shape {targets.shape}: both are (N, C).")
    ap = np.full(targets.shape[1], np.nan)
    for start in range(0, len(ap), BLOCK):
        columns = slice(start, start + BLOCK)
        block = np.ascontiguousarray(scores[:, columns].T)
        for c, score, target in zip(range(start, len(ap)), block, targets[:, columns].T.astype(bool), strict=False):
            if not np.isfinite(score).all():
                bad = int((~np.isfinite(score)).sum())
                raise ValueError(
                    f"The scores of class {_called(c, names)} are not finite in {bad} of {len(score)} rows: "
                    "the model's logits are broken, so no AP is taken."
                )
            if known is not None:
                score, target = score[known[:, c]], target[known[:, c]]
            if target.any():
                ap[c] = average_precision_score(target, score)
    return ap


def check_targets(
    targets: np.ndarray, known: np.ndarray | None, *, names: Sequence[str] | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return `targets` and `known` as arrays of one shape ``(N, C)``, `known` as bool.

    Raises:
        ValueError: A shape is wrong, or a target is neither 0 nor 1.
    """
    targets = np.asanyarray(targets)
    if targets.ndim != 2:
        raise ValueError(f"targets have shape {targets.shape}: (N, C) is needed, one row an image, one column a class.")
    if names is not None and len(names) != targets.shape[1]:
        raise ValueError(f"{len(names)} class names were given for targets of {targets.shape[1]} classes.")
    if known is not None:
        known = np.asarray(known, dtype=bool)
        if known.shape != targets.shape:
            raise ValueError(f"known has shape {known.shape}, but targets have shape {targets.shape}: both are (N, C).")
    if targets.dtype != np.bool_:
        wrong = ((targets != 0) & (targets != 1)).any(axis=0)
        if wrong.any():
            c = int(wrong.argmax())
            raise ValueError(f"The targets of class {_called(c, names)} hold values other than 0 and 1.")
    return targets, known


def _called(c: int, names: Sequence[str] | None) -> str:
    return f"{c}" if names is None else f"'{names[c]}' (index {c})"
