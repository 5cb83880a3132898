"""One run, from a recipe to its report: read this file to see what training does."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import skip_first_batches
from accelerate.utils import set_seed
from tqdm import tqdm

from clip_more.config import TrainConfig
from clip_more.data.load import LongTailData, load_data
from clip_more.evaluation.average_precision import average_precision
from clip_more.evaluation.groups import split_map
from clip_more.evaluation.results import versions
from clip_more.models.clip import load_clip
from clip_more.training.average import RunningAverage
from clip_more.training.build import build_classifier, build_task, parameter_groups
from clip_more.training.checkpoint import (
    BEST_WEIGHTS,
    list_checkpoints,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    save_weights,
)
from clip_more.training.processes import make_accelerator
from clip_more.training.report import judge_untouched, report
from clip_more.training.run import Run
from clip_more.training.run_folder import MetricsLog, claim, finished
from clip_more.training.schedule import alpha, warmup_cosine
from clip_more.training.start import TrainPhotos, head_start
from clip_more.training.task import LongTailTask
from clip_more.training.vocabulary import compact_vocabulary


class TrainingError(RuntimeError):
    """Training cannot go on; the message says since which step, and what is left."""


def train(config: TrainConfig) -> Path:
    """Train, or go on with, the run that `config` names; returns its folder.

    Raises:
        ConfigError: If processes, data, model or run folder are not what the recipe says; nothing is written then.
        TrainingError: If the loss is no longer finite.
    """
    accelerator = make_accelerator(config)
    if finished(config):
        accelerator.print(f"run {config.run_folder} is finished; name another with --run NAME to train again")
        return config.run_folder
    set_seed(config.seed)
    data = load_data(config)
    clip = load_clip(config.model, image_size=config.image_size, seed=config.seed)
    classifier = build_classifier(config, clip, data.profile)
    with accelerator.main_process_first():
        folder = claim(config, versions())
    run = Run(config, accelerator, data, classifier, folder, MetricsLog(folder, accelerator.is_main_process))
    accelerator.print(f"run {folder} | {clip.source} at {clip.image_size} px | {_describe(data)}")

    # Judging the untouched CLIP and fitting the head open every photo before any is trained on.
    classifier.to(accelerator.device)
    before = judge_untouched(run)
    if config.head_start == "fit" and not list_checkpoints(run.checkpoints):
        loss = head_start(run)
        run.log.write("head_start", step=0, loss=loss, scale=classifier.head.log_scale.exp().item())

    text_is_trained = config.text_tower == "train" and config.tuning in ("full", "more")
    with compact_vocabulary(clip.model, classifier.head.input_ids) if text_is_trained else nullcontext():
        task = build_task(config, classifier, data.profile)
        optimise(run, task)
    report(run, before)
    run.log.write("done")
    return folder


def optimise(run: Run, task: LongTailTask) -> None:
    """The loop: from the last checkpoint, or from the start, to the last step; leaves the kept weights in `task`."""
    config, accelerator, log = run.config, run.accelerator, run.log
    photos = TrainPhotos(config, run.data, run.classifier.clip)
    optimizer = torch.optim.AdamW(parameter_groups(config, task))
    wrapped, optimizer, loader = accelerator.prepare(task, optimizer, photos.loader)
    average = RunningAverage(task, config.ema_decay) if config.keep == "ema" else None
    steps_an_epoch = math.ceil(len(loader) / config.accumulation)
    total = config.max_steps or max(1, round(config.epochs * steps_an_epoch))
    amplitude = config.amplitude * (len(run.data.profile.names) if config.amplitude_normalised else 1)
    progress: dict[str, Any] = {"step": 0, "best": None}
    if checkpoints := list_checkpoints(run.checkpoints):
        progress = load_checkpoint(checkpoints[-1], accelerator, task, optimizer, average)
        accelerator.print(f"going on from {checkpoints[-1]}")
        log.write("resume", step=progress["step"])
    step = progress["step"]
    if config.trackers:
        accelerator.init_trackers(config.run_name, config=_plain(config))

    bar = tqdm(total=total, initial=step, desc=config.run_name, unit="step", disable=not accelerator.is_main_process)
    wrapped.train()
    while step < total:
        epoch, done = divmod(step, steps_an_epoch)
        photos.set_epoch(epoch)
        for batch in skip_first_batches(loader, done * config.accumulation) if done else loader:
            weight = alpha(step, total, amplitude, config.alpha_schedule) if task.discrepancy is not None else 0.0
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
            progress["step"] = step
            run.classifier.head.clamp_scale()
            if average is not None:
                average.update(task, step)
            values = _loss_values(run, losses, step)
            bar.update()
            bar.set_postfix(loss=f"{values['loss']:.3f}", refresh=False)
            if step % config.log_every == 0 or step in (1, total):
                values |= {"alpha": weight, "lr": optimizer.param_groups[0]["lr"], "gradient_norm": _finite(norm)}
                log.write("train", step=step, **values)
                if config.trackers:
                    accelerator.log({k: v for k, v in values.items() if v is not None}, step=step)
            if config.eval_every and (step % config.eval_every == 0 or step == total):
                _validate(run, task, progress)
            if step % (config.checkpoint_every or steps_an_epoch) == 0 or step == total:
                save_checkpoint(run.checkpoints, accelerator, task, optimizer, average, progress)
            if step == total:
                break
    bar.close()
    if config.trackers:
        accelerator.end_training()
    if average is not None:
        average.swap(task)
    elif config.keep == "best":
        load_weights(task, run.checkpoints / BEST_WEIGHTS)


def _validate(run: Run, task: LongTailTask, progress: dict[str, Any]) -> None:
    """mAP on the held-out part of train; the best weights so far are kept where the recipe selects."""
    predictions = run.logits(run.data.val, "validation")
    ap = average_precision(predictions.targets, predictions.scores, predictions.known)
    maps = split_map(ap, run.data.profile)
    run.log.write("eval", step=progress["step"], split="val", map=maps)
    if run.config.keep == "best" and (progress["best"] is None or maps["total"] > progress["best"]):
        progress["best"] = maps["total"]
        if run.accelerator.is_main_process:
            save_weights(task, run.checkpoints / BEST_WEIGHTS)


def _loss_values(run: Run, losses: dict[str, Any], step: int) -> dict[str, float | None]:
    """Losses of a step as numbers, averaged over processes so that all of them stop together.

    Raises:
        TrainingError: If the loss is not finite.
    """
    names = [name for name in ("loss", "base", "discrepancy") if losses[name] is not None]
    values = torch.stack([losses[name].detach().float() for name in names])
    if run.accelerator.num_processes > 1:
        values = run.accelerator.reduce(values, reduction="mean")
    parts = dict(zip(names, values.tolist(), strict=True))
    if not math.isfinite(parts["loss"]):
        last = next(reversed(list_checkpoints(run.checkpoints)), None)
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
