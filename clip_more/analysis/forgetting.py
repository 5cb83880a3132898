"""Forgetting scores: how often a train photo that was right becomes wrong again."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from clip_more.data.profile import GROUPS, ClassProfile

_FILE = re.compile(r"step_(\d+)\.safetensors")


def forgetting_scores(correct: np.ndarray) -> np.ndarray:
    """Transitions from correct to wrong over the epochs; a photo that was never correct gets the number of epochs.

    That is the count of Toneva et al. (ICLR 2019), with their "infinitely often" of photos never learnt made finite.

    Args:
        correct: (E, N), 0 or 1: whether photo n was classified correctly in epoch e, in the order of the epochs.

    Returns:
        (N,) int64.

    Raises:
        ValueError: The table is not of that form.
    """
    correct = np.asarray(correct)
    if correct.ndim != 2 or not correct.shape[0]:
        raise ValueError(f"the table of correct photos has shape {correct.shape}: (epochs, photos) is needed")
    if not np.isin(correct, (0, 1)).all():
        raise ValueError("the table of correct photos holds other values than 0 and 1")
    right = correct.astype(bool)
    lost = (right[:-1] & ~right[1:]).sum(axis=0, dtype=np.int64)
    return np.where(right.any(axis=0), lost, correct.shape[0])


def forgetting_by_group(correct: np.ndarray, targets: np.ndarray, profile: ClassProfile) -> dict[str, Any]:
    """Mean forgetting score of the photos of each class, averaged by group.

    Args:
        correct: (E, N) as in :func:`forgetting_scores`.
        targets: (N, C) bool; a photo with several labels counts in each of its classes.
        profile: Groups.

    Returns:
        `epochs`, `photos`; `score` and `never` (share of photos never correct) of `total` (over photos), `head`,
        `medium` and `tail` (means over classes), None without a photo; and `by_class`, C scores.

    Raises:
        ValueError: The table has another number of photos than the targets.
    """
    scores = forgetting_scores(correct)
    if len(scores) != len(targets):
        raise ValueError(
            f"the table of correct photos has {len(scores)} photos and the train part {len(targets)}: it belongs to "
            "other data"
        )
    # Only a photo that was never correct scores as many as there are epochs: others lose at most every second one.
    never = np.asarray(scores == np.shape(correct)[0])
    counts = targets.sum(axis=0)
    found: dict[str, Any] = {"epochs": np.shape(correct)[0], "photos": len(scores)}
    figures: dict[str, np.ndarray] = {"score": scores, "never": never}
    for name, values in figures.items():
        by_class = np.full(targets.shape[1], np.nan)
        np.divide(values.astype(np.float64) @ targets, counts, out=by_class, where=counts > 0)
        found[name] = {"total": float(values.mean()) if len(values) else None}
        for group in GROUPS:
            own = by_class[profile.indices(group)]
            own = own[~np.isnan(own)]
            found[name][group] = float(own.mean()) if len(own) else None
        if name == "score":
            found["by_class"] = by_class
    return found


def read_correct(folder: str | os.PathLike[str]) -> np.ndarray | None:
    """The table (E, N) uint8 from `step_*.safetensors` (tensor `correct`, (N,)) of a folder; None where there is none.

    A run with `forgetting: true` writes one after each epoch: whether the class with the highest logit is (one of) the
    photo's.

    Raises:
        ValueError: A file cannot be read, or epochs have different numbers of photos; names the file.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    found = {int(match[1]): path for path in Path(folder).glob("*") if (match := _FILE.fullmatch(path.name))}
    rows: list[np.ndarray] = []
    for _, path in sorted(found.items()):
        try:
            row = load_file(path)["correct"]
        except (SafetensorError, OSError, KeyError) as error:
            raise ValueError(
                f"{path} holds no tensor `correct` that can be read ({error}): move the folder away to analyse the run "
                "without forgetting scores"
            ) from error
        if row.ndim != 1 or (rows and row.shape != rows[0].shape):
            raise ValueError(
                f"{path} holds {row.shape} where one value a train photo is needed, as in the other epochs"
            )
        rows.append(row)
    return np.stack(rows) if rows else None
