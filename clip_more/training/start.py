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
from clip_more.evaluation.predict import image_features, raw_features
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
    train, options = _sample(run)
    features = image_features(classifier.clip, train, run.accelerator, label="head start", **options)
    with torch.no_grad():
        text = classifier.head.text_features(classifier.clip).cpu().numpy()
    return classifier.head.start_from(features.scores @ text.T, features.targets, features.known)


def feature_head_start(run: Run, classifier: FeatureClassifier) -> float:
    """Set the rows of a head on features to class texts or class means; returns the scale."""
    config = run.config
    train, options = _sample(run)
    features = raw_features(classifier.encoder, train, run.accelerator, label="head start", **options)
    if config.head_init == "text":
        prompts = class_prompts(run.data.profile.names, load_templates(config.templates), config.class_prompts)
        directions = text_directions(cast(Clip, classifier.encoder), prompts)
    else:
        directions = mean_directions(features)
    return start_head(classifier.head, directions, features, config.loss in LOSSES_OF_ONE_LABEL)


def _sample(run: Run) -> tuple[datasets.Dataset, dict[str, Any]]:
    """Train photos that a head is started on, and how they are read."""
    config, train = run.config, run.data.train
    if len(train) > HEAD_START_PHOTOS:
        rows = np.random.default_rng(config.seed).permutation(len(train))[:HEAD_START_PHOTOS]
        train = train.select(np.sort(rows))
    return train, {
        "batch_size": config.batch_size,
        "workers": config.workers,
        "worker_timeout": config.worker_timeout,
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
