"""Probabilities of many photos into a Parquet file: split over processes, resumable, memory bounded by a part."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from tqdm import tqdm

from clip_more.data.loading import batches, photo_loader
from clip_more.data.opening import PhotoError
from clip_more.data.photos import Photos
from clip_more.data.transforms import Preprocess
from clip_more.evaluation.prediction_parts import Part, PredictionParts, as_table
from clip_more.models.classifier import FeatureClassifier
from clip_more.models.image_classifier import Description, ImageClassifier

if TYPE_CHECKING:
    import datasets
    from accelerate import Accelerator

# A part holds at least a batch, and beyond that at most so many photos, and so many probabilities; of few photos there
# are so many parts, so that processes get equal shares of them.
_PART_PHOTOS = 1024
_PART_VALUES = 2**22
_LEAST_PARTS = 256


def prediction_parts(
    out: str | os.PathLike[str],
    description: Description,
    dataset: datasets.Dataset,
    *,
    checkpoint: dict[str, Any],
    batch_size: int,
    views: str = "one",
    precision: str = "no",
) -> PredictionParts:
    """The parts that a Parquet file of predictions is made in, and what they depend on.

    Args:
        out: The file; `<out>.parts/` lies beside it until it is done.
        description: Of the classifier.
        dataset: Photos in the common form.
        checkpoint: What identifies the weights, such as digests of their files.
        batch_size: Photos at a time; a part is whole batches, so that a resumed call has the same ones.
        views: As in `test_transform`.
        precision: Accelerate's `mixed_precision`.
    """
    plan: dict[str, Any] = {
        "checkpoint": checkpoint,
        "photos": len(dataset),
        **_identity(dataset),
        "views": views,
        "batch_size": batch_size,
        "mixed_precision": precision,
        **asdict(description),
    }
    room = min(_PART_PHOTOS, _PART_VALUES // len(description.class_names), len(dataset) // _LEAST_PARTS)
    size = batch_size * max(1, room // batch_size)
    starts = range(0, len(dataset), size)
    parts = [Part(number, range(start, min(start + size, len(dataset)))) for number, start in enumerate(starts)]
    return PredictionParts(out, plan, parts)


@torch.inference_mode()
def predict_parts(
    parts: PredictionParts,
    absent: Sequence[Part],
    module: ImageClassifier | FeatureClassifier,
    description: Description,
    dataset: datasets.Dataset,
    accelerator: Accelerator,
    *,
    workers: int,
    broken: str = "refuse",
    worker_timeout: float = 300.0,
) -> None:
    """Make this process's share of the parts that are absent: every n-th of them.

    Args:
        parts: Claimed, from `prediction_parts`.
        absent: Of them, the same on every process.
        module: In eval mode, on the accelerator's device.
        description: Of it.
        dataset: The photos; labels are not looked at.
        accelerator: Says which process this is, on which device, and how it casts.
        workers: Processes that decode photos.
        broken: `refuse` photos that cannot be read, or `skip` them.
        worker_timeout: Seconds to wait for photos; 0 for ever.

    Raises:
        PhotoError: A photo cannot be read and `broken` is `refuse`, or its worker is stuck or dead. Parts that are
            done stay.
    """
    own = list(absent[accelerator.process_index :: accelerator.num_processes])
    views, batch_size = parts.plan["views"], parts.plan["batch_size"]
    photos = _Unlabelled(dataset, description.transform(views), skip=broken == "skip")
    groups = [_batches_of(part, batch_size) for part in own]
    loader = photo_loader(
        photos,
        workers=workers,
        timeout=worker_timeout,
        batch_sampler=[batch for group in groups for batch in group],
        pin_memory=accelerator.device.type == "cuda",
    )
    ids = dataset.with_format(None).select_columns("image_id")
    bar = tqdm(
        total=sum(len(part.photos) for part in own),
        desc="predicting",
        unit="photo",
        disable=not accelerator.is_main_process or None,
    )
    with closing(batches(loader, photos)) as loaded, bar:  # type: ignore[type-var]
        for part, group in zip(own, groups, strict=True):
            logits, causes = [], []
            for _ in group:
                batch = next(loaded)
                logits.append(
                    _logits(module, batch["pixel_values"].to(accelerator.device, non_blocking=True), accelerator)
                )
                causes += batch["cause"]
                bar.update(len(batch["cause"]))
            names = ids[part.photos.start : part.photos.stop]["image_id"]
            scores, classes = np.concatenate(logits), description.class_names
            table = as_table(names, scores, causes, classes, description.thresholds, softmax=description.softmax)
            parts.write(part, table)


def _logits(module: ImageClassifier | FeatureClassifier, pixel_values: Tensor, accelerator: Accelerator) -> np.ndarray:
    """(N, C) float32 of photos (N, 3, H, W), or of their views (N, V, 3, H, W), averaged."""
    with accelerator.autocast():
        logits = module(pixel_values.flatten(0, -4)).float()
    if pixel_values.dim() == 5:
        logits = logits.unflatten(0, pixel_values.shape[:2]).mean(dim=1)
    return logits.cpu().numpy()


def _batches_of(part: Part, batch_size: int) -> list[Any]:
    """Ranges of row numbers: a list of numbers for each batch of a million photos would weigh more than the photos."""
    return [part.photos[start : start + batch_size] for start in range(0, len(part.photos), batch_size)]


class _Unlabelled(Photos):
    """Samples `pixel_values` and `cause`: why a photo could not be read, its pixels being zeros, or ""."""

    def __init__(self, dataset: datasets.Dataset, transform: Preprocess, skip: bool) -> None:
        super().__init__(dataset, transform)
        self._blank = torch.zeros_like(transform(PIL.Image.new("RGB", (8, 8)))) if skip else None

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Any]:
        try:
            return {"pixel_values": super().__getitem__(index)["pixel_values"], "cause": ""}
        except PhotoError as error:
            if self._blank is None:
                raise
            return {"pixel_values": self._blank, "cause": error.cause or str(error)}


def _identity(dataset: datasets.Dataset) -> dict[str, Any]:
    """Which photos there are, in which order.

    Returns:
        `photos_below`, the folder that all photo files are below, None where there are none or no such folder; and
        `photos_digest`, of names and files.
    """
    words, folders = hashlib.blake2b(digest_size=16), {}
    ids, paths = dataset.with_format(None).select_columns("image_id"), _files(dataset)
    for start in range(0, len(ids), 10_000):
        lines = ids[start : start + 10_000]["image_id"]
        for path in paths[start : start + 10_000].to_pylist():
            folder, name = os.path.split(path or "")
            if path is not None and folder not in folders:  # links are followed once a folder, not once a photo
                folders[folder] = os.path.realpath(folder)
            lines.append("" if path is None else os.path.join(folders[folder], name))
        words.update(("\0".join(lines) + "\0").encode("utf-8", "surrogateescape"))
    try:
        below = os.fsencode(os.path.commonpath(list(folders.values()))).decode("utf-8", "replace")
    except ValueError:  # no file, or several drives
        below = None
    return {"photos_below": below, "photos_digest": words.hexdigest()}


def _files(dataset: datasets.Dataset) -> pa.ChunkedArray:
    """The path of each photo; null where the data set holds the photo itself."""
    image = dataset.data.column("image")
    by_name = dict(zip((field.name for field in image.type), image.flatten(), strict=True))
    paths = pc.if_else(by_name["bytes"].is_valid(), pa.scalar(None, by_name["path"].type), by_name["path"])
    return paths if dataset._indices is None else paths.take(dataset._indices.column(0))
