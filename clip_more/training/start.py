"""What a run needs before step 0: train photos in order, and a head that starts near its optimum."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from clip_more.config import TrainConfig
from clip_more.data.load import LongTailData
from clip_more.data.opening import PhotoError
from clip_more.data.photos import Photos, verify_photos
from clip_more.data.samplers import ShuffleSampler
from clip_more.data.transforms import train_transform
from clip_more.evaluation.predict import image_features
from clip_more.models.clip import Clip
from clip_more.training.run import Run

if TYPE_CHECKING:
    import datasets

# Photos that scale and biases are fitted on, at most.
HEAD_START_PHOTOS = 20_000


class TrainPhotos:
    """Augmented train photos in shuffled batches.

    Attributes:
        loader: Batches of `pixel_values`, `targets`, `known` and `index`.
    """

    def __init__(self, config: TrainConfig, data: LongTailData, clip: Clip) -> None:
        transform = train_transform(
            clip.image_size,
            clip.image_mean,
            clip.image_std,
            min_scale=config.min_crop,
            flip=config.flip,
            interpolation=clip.interpolation,
        )
        self._photos = Photos(data.train, transform, seed=config.seed)
        self._sampler = ShuffleSampler(len(self._photos), config.seed)
        self.loader = DataLoader(
            self._photos,
            batch_size=config.batch_size,
            sampler=self._sampler,
            num_workers=config.workers,
            persistent_workers=config.workers > 0,
            # A generator of its own: workers draw their seeds from it, so that dropout's stream survives a resume.
            generator=torch.Generator(),
        )

    def set_epoch(self, epoch: int) -> None:
        """Order and augmentation of this epoch, from the loader's next iterator on."""
        self._sampler.epoch = self._photos.epoch = epoch


def head_start(run: Run) -> float:
    """Fit scale and class biases on features of train photos, taken once; returns the loss an image."""
    config, classifier, train = run.config, run.classifier, run.data.train
    if len(train) > HEAD_START_PHOTOS:
        rows = np.random.default_rng(config.seed).permutation(len(train))[:HEAD_START_PHOTOS]
        train = train.select(np.sort(rows))
    options: dict[str, Any] = {"batch_size": config.batch_size, "workers": config.workers}
    features = image_features(classifier.clip, train, run.accelerator, label="head start", **options)
    with torch.no_grad():
        text = classifier.head.text_features(classifier.clip).cpu().numpy()
    return classifier.head.start_from(features.scores @ text.T, features.targets, features.known)


def require_readable(dataset: datasets.Dataset) -> None:
    """Open every photo once, where no head start does.

    Raises:
        PhotoError: Naming the first photo that cannot be read, and how many there are.
    """
    unreadable = verify_photos(dataset)
    if unreadable:
        path, cause = unreadable[0]
        raise PhotoError(f"{len(unreadable)} of {len(dataset)} photos cannot be read; the first is {path}: {cause}")
