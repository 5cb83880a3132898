"""The one form that every data set is read into: a `datasets.Dataset` of photos, labels and unknown labels."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import datasets
    import PIL.Image

# Positions in a column of lists are 32-bit numbers.
MAX_PAIRS = 2**31 - 1


def make_dataset(
    images: Sequence[str | Path | bytes | PIL.Image.Image],
    labels: Sequence[Sequence[int]],
    names: Sequence[str],
    *,
    image_ids: Sequence[str] | None = None,
    unknown: Sequence[Sequence[int]] | None = None,
) -> datasets.Dataset:
    """Put photos and their labels into the common form.

    Args:
        images: N photos: paths (nothing is opened here), encoded bytes, or PIL images (kept in memory as PNG).
        labels: N lists of positive classes, in any order; an empty list means "all negative".
        names: C class names.
        image_ids: N names by which errors and results call the photos; the path, or the row number, by default.
        unknown: N lists of classes that are neither positive nor negative in that photo; none by default.

    Returns:
        Columns `image: Image()`, `labels: List(ClassLabel)`, `image_id: string`, `unknown: List(ClassLabel)`;
        labels and unknown are sorted and without repeats.

    Raises:
        ValueError: lengths differ, class names repeat, an index is outside 0..C-1, or a class is both positive and
            unknown in one photo.
    """
    import datasets

    names = _checked_names(names)
    if image_ids is None:
        image_ids = [str(x) if isinstance(x, str | Path) else str(row) for row, x in enumerate(images)]
    if unknown is None:
        unknown = [()] * len(images)
    if not len(images) == len(labels) == len(image_ids) == len(unknown):
        raise ValueError(
            f"{len(images)} images, {len(labels)} label lists, {len(image_ids)} image ids and {len(unknown)} unknown "
            "lists: there must be one of each for every photo"
        )
    labels = [_checked_row(row, len(names), name) for row, name in zip(labels, image_ids, strict=True)]
    unknown = [_checked_row(row, len(names), name) for row, name in zip(unknown, image_ids, strict=True)]
    for positive, unsure, name in zip(labels, unknown, image_ids, strict=True):
        both = set(positive).intersection(unsure)
        if both:
            raise ValueError(f"image {name}: class {names[min(both)]!r} is both positive and unknown")
    classes = datasets.List(datasets.ClassLabel(names=list(names)))
    features = datasets.Features(
        {"image": datasets.Image(), "labels": classes, "image_id": datasets.Value("string"), "unknown": classes}
    )
    columns = {
        "image": [str(image) if isinstance(image, Path) else image for image in images],
        "labels": labels,
        "image_id": [str(name) for name in image_ids],
        "unknown": unknown,
    }
    return datasets.Dataset.from_dict(columns, features=features)


def class_names(dataset: datasets.Dataset) -> list[str]:
    """The C class names, in the order of the label indices."""
    return list(dataset.features["labels"].feature.names)


def multi_hot(dataset: datasets.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Labels as arrays: targets `(N, C)` bool, and known `(N, C)` bool, False where a label is unknown."""
    shape = (len(dataset), len(class_names(dataset)))
    targets, known = np.zeros(shape, dtype=bool), np.ones(shape, dtype=bool)
    targets[label_pairs(dataset, "labels")] = True
    known[label_pairs(dataset, "unknown")] = False
    return targets, known


def label_pairs(dataset: datasets.Dataset, column: str = "labels") -> tuple[np.ndarray, np.ndarray]:
    """Every entry of `labels` or `unknown` as `(rows, classes)`, two int64 arrays as long as there are entries."""
    lists = dataset.data.column(column).combine_chunks()
    if dataset._indices is not None:  # with datasets' own way of taking rows a million take ten seconds
        lists = lists.take(dataset._indices.column(0).combine_chunks())
    lengths = lists.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    classes = lists.flatten().to_numpy(zero_copy_only=False).astype(np.int64)
    return np.repeat(np.arange(len(lists)), lengths), classes


def digest(dataset: datasets.Dataset) -> str:
    """A fingerprint of which photos there are, in which order, with which labels; not of their pixels."""
    words = hashlib.blake2b(digest_size=16)
    for name in class_names(dataset):
        words.update(name.encode() + b"\0")
    ids = dataset.with_format(None).select_columns("image_id")
    for start in range(0, len(ids), 10_000):
        words.update("\0".join(map(str, ids[start : start + 10_000]["image_id"])).encode())
    for column in ("labels", "unknown"):
        for array in label_pairs(dataset, column):
            words.update(len(array).to_bytes(8, "little") + array.tobytes())
    return words.hexdigest()


def keep_classes(dataset: datasets.Dataset, names: Sequence[str]) -> datasets.Dataset:
    """Keep a subset of the classes, in the order given (the `classes:` key of a recipe).

    Photos stay even when all their labels go: they are negatives of the classes kept.

    Raises:
        ValueError: a name is not a class of the data set, or is given twice.
    """
    names, old = _checked_names(names), class_names(dataset)
    index_of = {name: index for index, name in enumerate(old)}
    strangers = [name for name in names if name not in index_of]
    if strangers:
        raise ValueError(f"classes: {_quoted(strangers)} not among the {len(old)} classes of the data: {_quoted(old)}")
    new_index = np.full(len(old), -1, dtype=np.int64)
    new_index[[index_of[name] for name in names]] = np.arange(len(names))
    for column in ("labels", "unknown"):
        rows, classes = label_pairs(dataset, column)
        classes = new_index[classes]
        rows, classes = rows[classes >= 0], classes[classes >= 0]
        order = np.lexsort((classes, rows))
        dataset = with_pairs(dataset, column, rows[order], classes[order], names)
    return dataset


def with_pairs(
    dataset: datasets.Dataset,
    column: str,
    rows: np.ndarray,
    classes: np.ndarray,
    names: Sequence[str] | None = None,
) -> datasets.Dataset:
    """Replace `labels` or `unknown`; photos are neither read nor copied.

    Args:
        dataset: N photos in the common form, none of them selected twice.
        column: "labels" or "unknown".
        rows: `(P,)` row numbers in ascending order.
        classes: `(P,)` class indices, ascending within a row.
        names: C class names of the new column; those it had without them.

    Raises:
        ValueError: there are more pairs than a data set can hold.
    """
    if len(rows) > MAX_PAIRS:
        raise ValueError(f"{len(rows):,} {column} pairs are more than the {MAX_PAIRS:,} that a data set can hold")
    stored = len(dataset)
    if dataset._indices is not None:  # a selection: what is stored has other rows, in another order
        stored = dataset.data.num_rows
        rows = dataset._indices.column(0).to_numpy()[rows]
        order = np.argsort(rows, kind="stable")
        rows, classes = rows[order], classes[order]
    ends = np.cumsum(np.bincount(rows, minlength=stored))
    return with_lists(dataset, column, ends, classes.astype(np.int64, copy=False), names)


def with_lists(
    dataset: datasets.Dataset, column: str, ends: np.ndarray, classes: np.ndarray, names: Sequence[str] | None = None
) -> datasets.Dataset:
    """As `with_pairs`, where the stored row i has the classes from `ends[i - 1]` up to `ends[i]`."""
    import datasets
    import pyarrow as pa

    offsets = pa.array(np.concatenate([[0], ends]), pa.int32())
    lists = pa.ListArray.from_arrays(offsets, pa.array(classes, pa.int64()))
    # Through datasets' own table, so that what is mapped from disk stays so, in spawned workers too.
    table = dataset.data.set_column(dataset.data.column_names.index(column), column, lists)
    table = table.replace_schema_metadata(None)
    features = dataset.features.copy()
    if names is not None:
        features[column] = datasets.List(datasets.ClassLabel(names=list(names)))
    # Left to itself, datasets pickles the table for its fingerprint, which takes several times the memory.
    mark = hashlib.blake2b(f"{dataset._fingerprint} {column} {features[column]}".encode(), digest_size=8)
    for array in (ends, classes):
        mark.update(np.ascontiguousarray(array).data)
    info = datasets.DatasetInfo(features=features)
    return datasets.Dataset(table, info=info, indices_table=dataset._indices, fingerprint=mark.hexdigest())


def _checked_names(names: Sequence[str]) -> list[str]:
    names = list(names)
    if not names:
        raise ValueError("the list of class names is empty")
    repeated = sorted(name for name, times in Counter(names).items() if times > 1)
    if repeated:
        raise ValueError(f"class names must differ: {_quoted(repeated)} given more than once")
    return names


def _checked_row(row: Sequence[int], num_classes: int, image_id: Any) -> list[int]:
    classes = sorted({int(index) for index in row})
    for index in classes[:1] + classes[-1:]:
        if not 0 <= index < num_classes:
            raise ValueError(f"image {image_id}: class index {index} is outside 0..{num_classes - 1}")
    return classes


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
