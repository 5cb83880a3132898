"""Logits of a classifier over a data set, on one process or many."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from clip_more.data.loading import batches, photo_loader
from clip_more.data.photos import Photos
from clip_more.data.transforms import test_transform
from clip_more.models.classifier import AnyClassifier, Encoder
from clip_more.models.clip import Clip

if TYPE_CHECKING:
    import datasets
    from accelerate import Accelerator


@dataclass(frozen=True)
class Predictions:
    """What a metric needs.

    Attributes:
        scores: (N, C) float32 logits (or features (N, D), from `image_features`).
        targets: (N, C) bool.
        known: (N, C) bool.
    """

    scores: np.ndarray
    targets: np.ndarray
    known: np.ndarray


def predict_logits(
    classifier: AnyClassifier,
    dataset: datasets.Dataset,
    accelerator: Accelerator,
    *,
    batch_size: int,
    workers: int,
    label: str = "evaluating",
    views: str = "one",
    worker_timeout: float = 300.0,
) -> Predictions:
    """Logits in the order of the data set; the prompts are encoded once.

    Photos are brought into a square as the CLIP's `geometry` and `interpolation` say.

    Args:
        classifier: Unwrapped, on the accelerator's device.
        dataset: In the common form.
        accelerator: Splits the photos over its processes and gathers the logits of each.
        batch_size: Photos a process.
        workers: Processes that decode photos.
        label: Of the progress bar.
        views: Views of a photo whose logits are averaged: `one`, `flip`, `five_crop` or `ten_crop`.
        worker_timeout: Seconds to wait for photos; 0 for ever.

    Raises:
        PhotoError: A photo cannot be read, or its worker is stuck or dead.
    """
    with torch.no_grad(), _evaluating(classifier), classifier.judging():
        return _run(
            classifier, classifier.encoder, dataset, accelerator, batch_size, workers, label, views, worker_timeout
        )


def raw_features(
    encoder: Encoder,
    dataset: datasets.Dataset,
    accelerator: Accelerator,
    *,
    batch_size: int,
    workers: int,
    label: str,
    worker_timeout: float = 300.0,
) -> Predictions:
    """Features (N, D) of every photo as the encoder gives them, float32, of any length: what a head reads.

    Arguments as in `predict_logits`.
    """
    with torch.no_grad(), _evaluating(encoder):
        return _run(
            _Features(encoder), encoder, dataset, accelerator, batch_size, workers, label, "one", worker_timeout
        )


def image_features(
    clip: Clip,
    dataset: datasets.Dataset,
    accelerator: Accelerator,
    *,
    batch_size: int,
    workers: int,
    label: str,
    views: str = "one",
    worker_timeout: float = 300.0,
) -> Predictions:
    """Features (N, D) of every photo, as float32: of unit length, or the mean of its views' unit vectors.

    That mean is not brought to unit length again: its product with a text's unit vector is the mean of the views'
    cosines, so that logits made of it are the views' average, as in `predict_logits`. Arguments as there.
    """
    with torch.no_grad(), _evaluating(clip):
        return _run(_ImageTower(clip), clip, dataset, accelerator, batch_size, workers, label, views, worker_timeout)


def preprocessing(clip: Clip) -> dict[str, Any]:
    """How a CLIP wants its photos: `geometry`, `interpolation`, `image_size`, `image_mean` and `image_std`."""
    return {
        "geometry": clip.geometry,
        "interpolation": clip.interpolation,
        "image_size": clip.image_size,
        "image_mean": list(clip.image_mean),
        "image_std": list(clip.image_std),
    }


class _Features(nn.Module):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.encoder.encode_image(pixel_values)


class _ImageTower(nn.Module):
    def __init__(self, clip: Clip) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.clip.encode_image(pixel_values).float(), dim=-1)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside (no dropout, in the text tower neither), the module's own mode again outside."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)


def _run(
    module: nn.Module,
    encoder: Encoder,
    dataset: datasets.Dataset,
    accelerator: Accelerator,
    batch_size: int,
    workers: int,
    label: str,
    views: str,
    worker_timeout: float,
) -> Predictions:
    transform = test_transform(
        encoder.image_size,
        encoder.image_mean,
        encoder.image_std,
        geometry=encoder.geometry,
        interpolation=encoder.interpolation,
        views=views,
    )
    photos = Photos(dataset, transform)
    loader: Any = photo_loader(photos, workers=workers, timeout=worker_timeout, batch_size=batch_size)
    loader = accelerator.prepare_data_loader(loader)
    silent = not accelerator.is_main_process or None
    parts = []
    try:
        for batch in tqdm(
            batches(loader, photos), total=len(loader), desc=label, unit="batch", leave=False, disable=silent
        ):
            pixels = batch["pixel_values"]
            with accelerator.autocast():
                scores = module(pixels.flatten(0, -4)).float()
            if pixels.dim() == 5:
                scores = scores.unflatten(0, pixels.shape[:2]).mean(dim=1)
            gathered = accelerator.gather_for_metrics((scores, batch["targets"], batch["known"]))
            parts.append([tensor.cpu().numpy() for tensor in gathered])
    finally:
        # Accelerate would keep it, and its shared memory, for good: a thousand validations are too many open files.
        accelerator._dataloaders.remove(loader)
    scores, targets, known = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Predictions(scores, targets.astype(bool), known)
