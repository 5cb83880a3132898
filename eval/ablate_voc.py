"""voc2012_lt_tiny by seed: which classes are rare is drawn anew, by leaving train photos out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from clip_more.config import TrainConfig
from clip_more.data.form import multi_hot
from clip_more.data.load import read_data
from clip_more.data.profile import ClassProfile
from clip_more.data.split import stratified_split
from clip_more.files import written_aside

TRAIN_LIST, TEST_LIST = "train_lt.txt", "test_balanced.txt"
# Train positives of the classes that a seed makes rare; where fewer are there, all that are.
RARE = (8, 10, 13, 15, 18)
FEWEST = 5
# Share of the train photos that are never trained on, and that settings are chosen on: the same for all seeds.
VALIDATION = 0.25


def draw_voc(photos: TrainConfig, folder: Path, seeds: Iterable[int]) -> None:
    """Write the lists of every seed.

        validation.txt           lines of the photos that are held out, to be judged on
        train.txt                lines of the others, which the common start is pretrained on
        test-s<seed>.txt         ids of a seed's train photos
        validation-s<seed>.txt   those of them that are not held out
        s<seed>.json             class profile of test-s<seed>.txt: the groups of both

    Args:
        photos: Names the lists of all photos.
        folder: Of what is written.
        seeds: Of the draws.
    """
    lists = Path(str(photos.data_root))
    data = read_data(replace(photos, train_list=TRAIN_LIST, test_list=TEST_LIST))
    targets, names = multi_hot(data.train)[0].astype(bool), list(data.train["image_id"])
    _, rows = stratified_split(targets, VALIDATION, seed=0)
    held_out = {names[row] for row in rows}
    lines = (lists / TRAIN_LIST).read_text(encoding="utf-8").splitlines()
    _write(folder / "validation.txt", [line for line in lines if line.split()[0] in held_out])
    _write(folder / "train.txt", [line for line in lines if line.split()[0] not in held_out])
    for seed in sorted(seeds):
        rows = draw_rows(targets, seed, photos.head_min)
        _write(folder / f"test-s{seed}.txt", [names[row] for row in rows])
        _write(folder / f"validation-s{seed}.txt", [names[row] for row in rows if names[row] not in held_out])
        own = ClassProfile.from_dataset(data.train.select(rows), photos.head_min, photos.tail_max)
        own.save(folder / f"s{seed}.json")


def draw_rows(targets: np.ndarray, seed: int, head_min: int = 100, rare: tuple[int, ...] = RARE) -> np.ndarray:
    """Rows of a seed's train photos.

    Of the classes that are not head, as many as `rare` has numbers are drawn and keep so many positives each. Those
    with the fewest photos choose theirs first: a photo of theirs counts for every drawn class that it shows, and a
    class never goes above its number. Before them, classes that are as rare by themselves and were not drawn choose
    `FEWEST` photos: nearly all of theirs may show a drawn class too.

    Args:
        targets: `(N, C)` bool.
        seed: Of the draw.
        head_min: Classes with so many positives are not drawn.
        rare: Positives of the drawn classes, dealt out at random.

    Returns:
        Row numbers, ascending.
    """
    rng = np.random.default_rng([seed, 2012])
    counts = targets.sum(axis=0)
    drawn = rng.permutation(np.flatnonzero(counts < head_min))[: len(rare)]
    room = np.zeros(targets.shape[1], dtype=int)
    room[drawn] = rng.permutation(np.asarray(rare)[: len(drawn)])
    shows = targets[:, drawn]
    kept = ~shows.any(axis=1)
    order = drawn[np.argsort(counts[drawn], kind="stable")]
    others = np.setdiff1d(np.flatnonzero(counts <= max(rare)), drawn)
    for c, wanted in [*((c, FEWEST) for c in others), *((c, max(rare)) for c in order)]:
        for row in rng.permutation(np.flatnonzero(targets[:, c] & ~kept)):
            own = drawn[shows[row]]
            if (room[own] > 0).all() and targets[kept, c].sum() < wanted:
                room[own] -= 1
                kept[row] = True
    return np.flatnonzero(kept)


def _write(path: Path, lines: list[str]) -> None:
    text = "".join(f"{line}\n" for line in lines)
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")
