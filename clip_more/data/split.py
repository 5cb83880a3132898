"""Holding out a validation split that looks like train in every class."""

from __future__ import annotations

import numpy as np


def stratified_split(targets: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split rows so that every class keeps its share on both sides, by iterative stratification.

    Sechidis, Tsoumakas and Vlahavas, "On the Stratification of Multi-Label Data", ECML PKDD 2011, algorithm 1: the
    class with the fewest rows left is dealt out first. A class never loses its last positive to validation.

    Args:
        targets: `(N, C)` bool, positives.
        fraction: share of the rows for validation, in (0, 1).
        seed: of the ties broken at random.

    Returns:
        Row numbers of train and of validation, each ascending; together every row once. Validation has about
        `fraction * N` rows: shares of classes go before the number of rows.

    Raises:
        ValueError: fraction is outside (0, 1), or there are too few rows for both sides.
    """
    from iterstrat.ml_stratifiers import MultilabelStratifiedShuffleSplit

    if not 0 < fraction < 1:
        raise ValueError(f"val_fraction must be between 0 and 1, not {fraction}")
    targets = np.asarray(targets, dtype=bool)
    rows = len(targets)
    if rows * fraction < 1 or rows * (1 - fraction) < 1:
        raise ValueError(f"val_fraction {fraction} of {rows} photos leaves no photo on one side of the split")
    # The library takes one class alone for a binary target and refuses it; a class without positives changes nothing.
    padded = np.column_stack([targets, np.zeros(rows, dtype=bool)])
    splitter = MultilabelStratifiedShuffleSplit(n_splits=1, test_size=fraction, random_state=seed)
    _, val = next(splitter.split(padded, padded))
    in_val = np.zeros(rows, dtype=bool)
    in_val[val] = True
    for index in np.flatnonzero(targets.any(axis=0) & ~targets[~in_val].any(axis=0)):
        # An earlier turn may have brought a photo with this class back already.
        if not targets[~in_val, index].any():
            in_val[np.flatnonzero(targets[:, index])[0]] = False
    return np.flatnonzero(~in_val), np.flatnonzero(in_val)
