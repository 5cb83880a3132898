"""What a run needs before its first step: train photos in order, and a head that starts near its optimum."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from clip_more.data.form import label_pairs
from clip_more.data.loading import photo_loader
from clip_more.data.opening import PhotoError
from clip_more.data.photos import Photos, verify_photos
from clip_more.data.samplers import make_order
from clip_more.data.stream import PhotoStream
from clip_more.data.transforms import train_transform
from clip_more.evaluation.predict import image_features
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
    config, accelerator, clip = run.config, run.accelerator, run.classifier.clip
    transform = train_transform(
        clip.image_size,
        clip.image_mean,
        clip.image_std,
        min_scale=config.min_crop,
        flip=config.flip,
        interpolation=clip.interpolation,
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


def head_start(run: Run) -> float:
    """Fit scale and class biases on features of train photos, taken once; returns the loss an image."""
    config, classifier, train = run.config, run.classifier, run.data.train
    if len(train) > HEAD_START_PHOTOS:
        rows = np.random.default_rng(config.seed).permutation(len(train))[:HEAD_START_PHOTOS]
        train = train.select(np.sort(rows))
    options: dict[str, Any] = {
        "batch_size": config.batch_size,
        "workers": config.workers,
        "worker_timeout": config.worker_timeout,
    }
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
