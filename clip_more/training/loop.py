"""One run, from a recipe to its report: read this file to see what training does."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from tqdm import tqdm

from clip_more.config import ConfigError, TrainConfig
from clip_more.data.load import LongTailData, load_data
from clip_more.data.photos import Photos
from clip_more.data.samplers import ShuffleSampler
from clip_more.data.transforms import train_transform
from clip_more.evaluation.average_precision import average_precision
from clip_more.evaluation.groups import split_map
from clip_more.evaluation.predict import image_features, predict_logits
from clip_more.evaluation.results import versions
from clip_more.models.clip import load_clip
from clip_more.models.heads import Classifier
from clip_more.training.average import RunningAverage
from clip_more.training.build import build_classifier, build_task, parameter_groups
from clip_more.training.checkpoint import (
    best_weights,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
    save_weights,
)
from clip_more.training.report import finish, judge_untouched
from clip_more.training.run_folder import MetricsLog, claim
from clip_more.training.schedule import alpha, warmup_cosine
from clip_more.training.task import LongTailTask

# Photos that scale and biases are fitted on before step 0, at most.
_HEAD_START_PHOTOS = 20_000


class TrainingError(RuntimeError):
    """Training cannot go on; the message says since which step, and what is left."""


def train(config: TrainConfig) -> Path:
    """Train, or go on with, the run that `config` names; returns its folder.

    Raises:
        ConfigError: If processes, data, model or run folder are not what the recipe says; nothing is written then.
        TrainingError: If the loss is no longer finite.
    """
    accelerator = make_accelerator(config)
    set_seed(config.seed)
    data = load_data(config)
    clip = load_clip(config.model, image_size=config.image_size, seed=config.seed)
    classifier = build_classifier(config, clip, data.profile)
    with accelerator.main_process_first():
        folder = claim(config, versions())
    if (folder / "report" / "results.json").exists():
        accelerator.print(f"{folder} is finished already; name another run with --run NAME to train again")
        return folder
    log = MetricsLog(folder / "metrics.jsonl", accelerator.is_main_process)
    accelerator.print(f"run {folder} | {clip.source} at {clip.image_size} px | {_describe(data)}")

    # Before step 0: judge the untouched CLIP, which also opens every test photo, and fit scale and biases on train.
    classifier.to(accelerator.device)
    before = judge_untouched(config, classifier, data, accelerator, folder)
    if config.head_start == "fit" and not list_checkpoints(folder / "checkpoints"):
        loss = _head_start(config, classifier, data, accelerator)
        log.write("head_start", step=0, loss=loss, scale=classifier.head.log_scale.exp().item())

    task = build_task(config, classifier, data.profile)
    optimizer = torch.optim.AdamW(parameter_groups(config, task))
    photos, sampler, loader = _train_loader(config, data, classifier)
    wrapped, optimizer, loader = accelerator.prepare(task, optimizer, loader)
    average = RunningAverage(task, config.ema_decay) if config.keep == "ema" else None
    steps_an_epoch = math.ceil(len(loader) / config.accumulation)
    total = config.max_steps or max(1, round(config.epochs * steps_an_epoch))
    peak = config.amplitude * (len(data.profile.names) if config.amplitude_normalised else 1)
    progress: dict[str, Any] = {"best": None}
    step = 0
    if checkpoints := list_checkpoints(folder / "checkpoints"):
        progress = load_checkpoint(checkpoints[-1], accelerator, task, optimizer, average)
        step = progress.pop("step")
        accelerator.print(f"going on from {checkpoints[-1]}")
        log.write("resume", step=step)
    if config.trackers:
        accelerator.init_trackers(config.run_name, config=_plain(config))

    def checkpoint() -> None:
        save_checkpoint(folder / "checkpoints", step, accelerator, task, optimizer, average, progress)

    bar = tqdm(total=total, initial=step, desc=config.run_name, unit="step", disable=not accelerator.is_main_process)
    wrapped.train()
    while step < total:
        epoch, done = divmod(step, steps_an_epoch)
        sampler.set_epoch(epoch)
        photos.set_epoch(epoch)
        for batch in skip_first_batches(loader, done * config.accumulation) if done else loader:
            weight = alpha(step, total, peak, config.alpha_schedule) if task.discrepancy is not None else 0.0
            with accelerator.accumulate(wrapped):
                losses = wrapped(batch, alpha=weight)
                accelerator.backward(losses["loss"])
                if accelerator.sync_gradients:
                    for group in optimizer.param_groups:
                        group["lr"] = group["peak_lr"] * warmup_cosine(step, total, config.warmup)
                    norm = accelerator.clip_grad_norm_(wrapped.parameters(), config.clip_norm or math.inf)
                optimizer.step()
                optimizer.zero_grad()
            if not accelerator.sync_gradients:
                continue
            step += 1
            classifier.head.clamp_scale()
            if average is not None:
                average.update(task, step)
            values = _loss_values(accelerator, losses, step, folder / "checkpoints")
            bar.update()
            bar.set_postfix(loss=f"{values['loss']:.3f}", refresh=False)
            if step % config.log_every == 0 or step in (1, total):
                values |= {"alpha": weight, "lr": optimizer.param_groups[0]["lr"], "gradient_norm": _finite(norm)}
                log.write("train", step=step, **values)
                if config.trackers:
                    accelerator.log({k: v for k, v in values.items() if v is not None}, step=step)
            if data.val is not None and config.eval_every and (step % config.eval_every == 0 or step == total):
                _evaluate(config, task, classifier, data, accelerator, log, step, progress, folder)
            if step % (config.checkpoint_every or steps_an_epoch) == 0 or step == total:
                checkpoint()
            if step >= total:
                break
    bar.close()

    finish(config, task, classifier, data, accelerator, folder, before, average)
    log.write("done", step=step)
    if config.trackers:
        accelerator.end_training()
    return folder


def make_accelerator(config: TrainConfig) -> Accelerator:
    """The accelerator of a recipe, its processes compared with those asked for.

    Raises:
        ConfigError: If another number of processes came up; launchers do this silently.
    """
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.accumulation,
        log_with=config.trackers or None,
        project_dir=str(config.run_folder) if config.trackers else None,
    )
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != accelerator.num_processes:
        raise ConfigError(
            f"the launcher started {launched} processes, but Accelerate sees {accelerator.num_processes} "
            f"({accelerator.distributed_type}): each would train alone. On CPUs put ACCELERATE_USE_CPU=true in front"
        )
    if config.processes is not None and config.processes != accelerator.num_processes:
        raise ConfigError(
            f"the recipe asks for {config.processes} processes, but {accelerator.num_processes} came up; start it with "
            f"`accelerate launch --num_processes {config.processes} -m clip_more.cli train ...` "
            "(on CPUs: ACCELERATE_USE_CPU=true in front, and --multi_gpu)"
        )
    return accelerator


def _train_loader(
    config: TrainConfig, data: LongTailData, classifier: Classifier
) -> tuple[Photos, ShuffleSampler, DataLoader]:
    clip = classifier.clip
    transform = train_transform(
        clip.image_size, clip.image_mean, clip.image_std, min_scale=config.min_crop, flip=config.flip
    )
    photos = Photos(data.train, transform, seed=config.seed)
    sampler = ShuffleSampler(len(photos), config.seed)
    loader = DataLoader(
        photos,
        batch_size=config.batch_size,
        sampler=sampler,
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
        # A generator of its own: workers draw their seeds from it, so that dropout's stream survives a resume.
        generator=torch.Generator(),
    )
    return photos, sampler, loader


def _head_start(config: TrainConfig, classifier: Classifier, data: LongTailData, accelerator: Accelerator) -> float:
    """Fit scale and class biases on features of train photos, taken once."""
    train = data.train
    if len(train) > _HEAD_START_PHOTOS:
        rows = np.random.default_rng(config.seed).permutation(len(train))[:_HEAD_START_PHOTOS]
        train = train.select(np.sort(rows))
    features = image_features(
        classifier.clip, train, accelerator, batch_size=config.batch_size, workers=config.workers, label="head start"
    )
    with torch.no_grad():
        text = classifier.head.text_features(classifier.clip).cpu().numpy()
    unit = features.scores / np.linalg.norm(features.scores, axis=1, keepdims=True).clip(1e-12)
    return classifier.head.start_from(unit @ text.T, features.targets, features.known)


def _evaluate(
    config: TrainConfig,
    task: LongTailTask,
    classifier: Classifier,
    data: LongTailData,
    accelerator: Accelerator,
    log: MetricsLog,
    step: int,
    progress: dict[str, Any],
    folder: Path,
) -> None:
    """mAP on the held-out part of train; the best weights so far are kept where the recipe selects."""
    predictions = predict_logits(
        classifier, data.val, accelerator, batch_size=config.batch_size, workers=config.workers, label="validation"
    )
    ap = average_precision(predictions.targets, predictions.scores, predictions.known)
    maps = split_map(ap, data.profile)
    log.write("eval", step=step, split="val", map=maps)
    if config.keep == "best" and (progress["best"] is None or maps["total"] > progress["best"]):
        progress["best"] = maps["total"]
        if accelerator.is_main_process:
            save_weights(task, best_weights(folder))


def _loss_values(
    accelerator: Accelerator, losses: dict[str, Any], step: int, checkpoints: Path
) -> dict[str, float | None]:
    """Losses of a step as numbers, averaged over processes so that all of them stop together.

    Raises:
        TrainingError: If the loss is not finite.
    """
    names = [name for name in ("loss", "base", "discrepancy") if losses[name] is not None]
    values = torch.stack([losses[name].detach().float() for name in names])
    if accelerator.num_processes > 1:
        values = accelerator.reduce(values, reduction="mean")
    parts = dict(zip(names, values.tolist(), strict=True))
    if not math.isfinite(parts["loss"]):
        last = next(reversed(list_checkpoints(checkpoints)), None)
        shown = ", ".join(f"{name} {value:g}" for name, value in parts.items())
        raise TrainingError(
            f"the loss is not finite at step {step} ({shown}); a lower lr or amplitude may help. Last good checkpoint: "
            f"{last or 'none yet'}"
        )
    return {"discrepancy": None, **parts}


def _finite(norm: Any) -> float | None:
    value = float(norm)
    return value if math.isfinite(value) else None


def _describe(data: LongTailData) -> str:
    sizes = {group: len(data.profile.indices(group)) for group in ("head", "medium", "tail")}
    groups = ", ".join(f"{size} {group}" for group, size in sizes.items())
    held_out = f", {len(data.val)} held out" if data.val is not None else ""
    return (
        f"{len(data.train)} train photos{held_out}, {len(data.test)} test | {len(data.profile.names)} classes: {groups}"
    )


def _plain(config: TrainConfig) -> dict[str, Any]:
    """Config values that every tracker takes."""
    return {key: v if isinstance(v, int | float | str | bool) else str(v) for key, v in config.to_dict().items()}
