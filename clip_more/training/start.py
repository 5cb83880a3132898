"""What a run needs before its first step: train photos in order, and a head that starts near its optimum."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch.utils.data import DataLoader

from clip_more.config import LOSSES_OF_ONE_LABEL
from clip_more.data.form import label_pairs
from clip_more.data.loading import photo_loader
from clip_more.data.opening import PhotoError
from clip_more.data.photos import Photos, verify_photos
from clip_more.data.samplers import make_order
from clip_more.data.stream import PhotoStream
from clip_more.data.transforms import train_transform
from clip_more.evaluation.predict import Predictions, image_features, raw_features
from clip_more.models.classifier import Classifier, FeatureClassifier
from clip_more.models.clip import Clip
from clip_more.models.prompts import class_prompts, load_templates
from clip_more.training.heads import mean_directions, start_head, text_directions
from clip_more.training.run import Run
from clip_more.training.schedule import Plan

if TYPE_CHECKING:
    import datasets

# Photos that scale and biases are fitted on, at most.
HEAD_START_PHOTOS = 20_000
# Of each class, at least, where its mean is taken.
HEAD_START_OF_A_CLASS = 20


def train_photos(run: Run, plan: Plan, start: int) -> tuple[Photos, DataLoader]:
    """This process's augmented train photos, from optimiser step `start` to the last, and the batches they come in.

    Batches hold `pixel_values`, `targets`, `known` and `index`; `accumulation` of them are a step.
    """
    config, accelerator, encoder = run.config, run.accelerator, run.classifier.encoder
    transform = train_transform(
        encoder.image_size,
        encoder.image_mean,
        encoder.image_std,
        min_scale=config.min_crop,
        flip=config.flip,
        interpolation=encoder.interpolation,
        crop=config.train_crop,
    )
    photos = Photos(run.data.train, transform, seed=config.seed)
    stream = PhotoStream(
        make_order(
            config.sampler,
            label_pairs(run.data.train),
            len(photos),
            seed=config.seed,
            exponent=config.sampler_exponent,
            per_class=config.sampler_per_class,
            unlabelled=config.sampler_unlabelled,
            epochs=plan.total * plan.photos_a_step / len(photos) if config.max_steps else config.epochs,
            single_label=config.task == "single_label",
        ),
        config.batch_size,
        accumulation=config.accumulation,
        processes=accelerator.num_processes,
        rank=accelerator.process_index,
        start=start,
        steps=plan.total,
    )
    loader = photo_loader(
        photos,
        workers=config.workers,
        timeout=config.worker_timeout,
        batch_sampler=stream,
        pin_memory=accelerator.device.type == "cuda",
    )
    return photos, loader


def before_first_step(run: Run) -> None:
    """Start the head near its optimum, on features of train photos taken once, or else look that all can be read.

    Raises:
        PhotoError: A photo cannot be read.
    """
    classifier, config = run.classifier, run.config
    if isinstance(classifier, Classifier) and config.head_start == "fit":
        loss = head_start(run, classifier)
        run.log.write("head_start", step=0, loss=loss, scale=classifier.head.log_scale.exp().item())
    elif isinstance(classifier, FeatureClassifier) and config.head_init != "random":
        run.log.write("head_start", step=0, loss=None, scale=feature_head_start(run, classifier))
    else:
        require_readable(run.data.train)


def head_start(run: Run, classifier: Classifier) -> float:
    """Fit scale and class biases of a prompt head; returns the loss an image."""
    rows, _ = head_start_rows(run.data.train, run.config.seed)
    features = image_features(classifier.clip, run.data.train.select(rows), run.accelerator, **_reading(run))
    with torch.no_grad():
        text = classifier.head.text_features(classifier.clip).cpu().numpy()
    one_label = run.config.loss in LOSSES_OF_ONE_LABEL
    return classifier.head.start_from(features.scores @ text.T, features.targets, features.known, one_label)


def feature_head_start(run: Run, classifier: FeatureClassifier) -> float:
    """Set the rows of a head on features to class texts or class means; returns the scale."""
    config = run.config
    fit, more = head_start_rows(run.data.train, config.seed)
    means = config.head_init == "class_mean"
    rows = np.concatenate([fit, more]) if means else fit
    found = raw_features(classifier.encoder, run.data.train.select(rows), run.accelerator, **_reading(run))
    if means:
        directions = mean_directions(found)
    else:
        prompts = class_prompts(run.data.profile.names, load_templates(config.templates), config.class_prompts)
        directions = text_directions(cast(Clip, classifier.encoder), prompts)
    features = Predictions(*(table[: len(fit)] for table in (found.scores, found.targets, found.known)))
    return start_head(classifier.head, directions, features, config.loss in LOSSES_OF_ONE_LABEL)


def head_start_rows(dataset: datasets.Dataset, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Train photos that a head is started on.

    Returns:
        A random sample, all photos if there are no more than `HEAD_START_PHOTOS`; and photos beside it, so that there
        are `HEAD_START_OF_A_CLASS` of each class, or all it has.
    """
    drawn = np.random.default_rng(seed).permutation(len(dataset))
    if len(dataset) <= HEAD_START_PHOTOS:
        return np.sort(drawn), drawn[:0]
    place = np.empty_like(drawn)
    place[drawn] = np.arange(len(drawn))
    rows, classes = label_pairs(dataset)
    order = np.lexsort((place[rows], classes))
    rows, classes = rows[order], classes[order]
    first = np.searchsorted(classes, classes)
    of_each = np.unique(rows[np.arange(len(rows)) - first < HEAD_START_OF_A_CLASS])
    return np.sort(drawn[:HEAD_START_PHOTOS]), of_each[place[of_each] >= HEAD_START_PHOTOS]


def _reading(run: Run) -> dict[str, Any]:
    """How the photos of a head start are read."""
    config = run.config
    return {
        "batch_size": config.batch_size,
        "workers": config.workers,
        "worker_timeout": config.worker_timeout,
        "label": "head start",
    }


def require_readable(dataset: datasets.Dataset) -> None:
    """Open every photo once, where no head start does.

    Raises:
        PhotoError: Naming the first photo that cannot be read, and how many there are.
    """
    unreadable = verify_photos(dataset)
    if unreadable:
        path, cause = unreadable[0]
        raise PhotoError(f"{len(unreadable)} of {len(dataset)} photos cannot be read; the first is {path}: {cause}")
