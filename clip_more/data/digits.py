"""`digits_mlt` and `digits_lt`: long-tailed sets without a download, drawn from scikit-learn's handwritten digits."""

from __future__ import annotations

import functools
import io
import math
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image

from clip_more.data.form import make_dataset

if TYPE_CHECKING:
    import datasets

DIGIT_CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PARTS = ("pretrain", "train", "test")
SPLITS = (*PARTS, "val")
MAX_DIGITS = 4  # one a quarter of the canvas
_BALANCED_SCENES = {"pretrain": 6000, "test": 1000, "val": 1000}


def read_digits(
    split: str,
    *,
    seed: int = 0,
    imbalance: float = 100.0,
    size: int = 32,
    largest: int = 700,
    scenes: int | None = None,
    most: int = MAX_DIGITS,
    shuffle: bool = False,
    cut: int | None = None,
) -> datasets.Dataset:
    """Draw one split of `digits_mlt`: scenes of one to four digits of different classes, in the common form.

    With `most=1` it is `digits_lt`: one digit a scene, for single-label methods.

    The 1,797 source digits are real (8 x 8 pixels each) and cut into three parts, class by class, for `pretrain`,
    `train` and `test`: none of the three shows a digit that another shows. The cut does not depend on `seed`, and the
    part of `pretrain` on nothing at all, so a CLIP pretrained here has not seen the digits of `train` and `test`.
    `val`, to choose settings on, shows those of `pretrain`, which such a CLIP knows, though not in this look.

    `train` is long-tailed: class c has `largest * imbalance^(-c / 9)` positives, zero the head and nine the tail.
    Classes are put into scenes independently of each other, so most scenes of a tail class also show a head class, as
    in real photos. The others are balanced. `pretrain` looks different: grey digits on a dark, quiet canvas;
    in the others ink, canvas and noise vary in colour and strength, and one scene in seven has dark ink on a light
    canvas. So there is something to learn that a CLIP pretrained here has not seen.

    Args:
        split: "pretrain", "train", "test" or "val".
        seed: draws the scenes.
        imbalance: train: positives of the most common class over those of the rarest.
        size: side of the canvas in pixels, even; digits take 3/8 to 1/2 of it.
        largest: train: positives of the most common class.
        scenes: all but train: how many; 6,000 of pretrain and 1,000 of test and val without it.
        most: digits of a scene, at most: 1 or 4.
        shuffle: train: which class is the most common, the second and so on is drawn by `seed`.
        cut: draws which of the digits that are not `pretrain`'s are `train`'s and which `test`'s; one cut without it.

    Raises:
        ValueError: an argument is out of range; the text says which.
    """
    if split not in SPLITS:
        raise ValueError(f"digits_mlt has no split {split!r}; choose one of {', '.join(SPLITS)}")
    if imbalance < 1 or round(largest / imbalance) < 1:
        raise ValueError(
            f"imbalance is {imbalance:g}; it must lie in 1..{largest}, or the rarest class of digits_mlt has no scene"
        )
    if most not in (1, MAX_DIGITS):
        raise ValueError(f"most is {most}; scenes have 1 digit, or up to {MAX_DIGITS}")
    if size < 16 or size % 2:
        raise ValueError(f"size is {size}; the canvas of digits_mlt has an even side of 16 pixels or more")
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    if split == "train":
        order = np.random.default_rng([seed, len(SPLITS)]).permutation(len(DIGIT_CLASSES)) if shuffle else None
        labels = _long_tailed_labels(largest, imbalance, most, rng, order)
    else:
        labels = _balanced_labels(_BALANCED_SCENES[split] if scenes is None else scenes, most, rng)
    pictures, pools = source_digits(split, cut)
    images = [_png(_scene([pictures[rng.choice(pools[c])] for c in row], split, size, rng)) for row in labels]
    return make_dataset(images, labels, DIGIT_CLASSES, image_ids=[f"{split}_{row:05d}" for row in range(len(images))])


def source_digits(split: str, cut: int | None = None) -> tuple[np.ndarray, list[np.ndarray]]:
    """The source digits, `(1797, 8, 8)` in 0..1, and for each of the ten classes the rows that belong to `split`."""
    pictures, classes = _load_digits()
    part = PARTS.index("pretrain" if split == "val" else split)
    rng = np.random.default_rng(0)
    shuffled = [rng.permutation(np.flatnonzero(classes == c)) for c in range(len(DIGIT_CLASSES))]
    parts = [[rows[start :: len(PARTS)] for start in range(len(PARTS))] for rows in shuffled]
    if cut is not None and part:
        rng = np.random.default_rng([cut, len(PARTS)])
        parts = [[own[0], *np.array_split(rng.permutation(np.concatenate(own[1:])), 2)] for own in parts]
    return pictures, [own[part] for own in parts]


@functools.cache
def _load_digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images / 16.0, digits.target


def _long_tailed_labels(
    largest: int, imbalance: float, most: int, rng: np.random.Generator, order: np.ndarray | None = None
) -> list[list[int]]:
    """Rows of classes in which class c, or order[c], comes exactly `largest * imbalance^(-c / 9)` times."""
    last = len(DIGIT_CLASSES) - 1
    counts = [round(largest * imbalance ** (-c / last)) for c in range(last + 1)]
    if order is not None:
        counts = [counts[rank] for rank in np.argsort(order)]
    if most == 1:
        return [[c] for c in rng.permutation(np.repeat(np.arange(last + 1), counts)).tolist()]
    # Enough room that a scene never has to take a class twice, whatever the imbalance.
    rows: list[list[int]] = [[] for _ in range(max(math.ceil(1.6 * largest), math.ceil(sum(counts) / 2)))]
    for c, count in enumerate(counts):
        room = [index for index, row in enumerate(rows) if len(row) < MAX_DIGITS]
        for index in rng.choice(room, count, replace=False):
            rows[index].append(c)
    return [row for row in rows if row]


def _balanced_labels(scenes: int, most: int, rng: np.random.Generator) -> list[list[int]]:
    """Rows of 1, 2, ... `most`, 1, ... different classes that all come about equally often."""
    counts = np.zeros(len(DIGIT_CLASSES))
    rows = []
    for scene in range(scenes):
        # The rarest so far come first; the noise keeps neighbouring scenes from determining each other.
        chosen = np.argsort(counts + rng.uniform(0, 10, len(counts)))[: 1 + scene % most]
        counts[chosen] += 1
        rows.append(sorted(chosen.tolist()))
    return rows


def _scene(digits: list[np.ndarray], split: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw digits `(8, 8)` into different quarters of a noisy canvas, `(size, size, 3)` uint8."""
    quiet = split == "pretrain"
    dark_ink = not quiet and rng.random() < 0.15
    canvas = np.tile(rng.uniform(0, 30 if quiet else 90, 3), (size, size, 1))
    cell = size // 2
    for digit, quarter in zip(digits, rng.permutation(4), strict=False):
        side = int(rng.integers(3 * cell // 4, cell + 1))
        stretched = PIL.Image.fromarray((digit * 255).astype(np.uint8)).resize(
            (side, side), PIL.Image.Resampling.BICUBIC
        )
        ink = np.asarray(stretched, dtype=np.float64)[..., None] / 255
        # Two pixels over the edge of its quarter at most, and never over that of the canvas.
        top, left = (
            min(max(cell * corner + int(rng.integers(-2, cell - side + 3)), 0), size - side)
            for corner in divmod(int(quarter), 2)
        )
        colour = np.full(3, rng.uniform(180, 255)) if quiet else rng.uniform(110, 255, 3)
        part = canvas[top : top + side, left : left + side]
        part += ink * (colour - part)
    if dark_ink:
        canvas = 255 - canvas
    canvas += rng.normal(0, 15 if quiet else rng.uniform(10, 40), canvas.shape)
    return canvas.clip(0, 255).astype(np.uint8)


def _png(canvas: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(canvas).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
