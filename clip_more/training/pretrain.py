"""Pretraining: from random weights to a CLIP whose prompts mean something."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from clip_more.data.form import class_names, multi_hot
from clip_more.data.loading import batches, photo_loader
from clip_more.data.photos import Photos
from clip_more.data.samplers import InstanceOrder
from clip_more.data.stream import PhotoStream
from clip_more.data.transforms import train_transform
from clip_more.files import filled_aside
from clip_more.models.clip import Clip
from clip_more.training.decay import decays
from clip_more.training.pretrain_task import OBJECTIVES, PretrainTask
from clip_more.training.schedule import warmup_cosine
from clip_more.training.vocabulary import compact_vocabulary

if TYPE_CHECKING:
    import datasets
    from accelerate import Accelerator

    from clip_more.config import TrainConfig

MAX_LOG_SCALE = math.log(100)  # CLIP's own bound


def pretrain(
    clip: Clip,
    dataset: datasets.Dataset,
    *,
    prompts: Sequence[Sequence[str]] | None = None,
    captions: Sequence[str] | None = None,
    objective: str = "sigmoid",
    steps: int = 3000,
    batch_size: int = 128,
    lr: float = 3e-3,
    weight_decay: float = 0.05,
    warmup: float = 0.02,
    clip_norm: float = 1.0,
    min_crop: float = 0.8,
    flip: bool = False,
    workers: int = 0,
    worker_timeout: float = 0.0,
    seed: int = 0,
    log_every: int = 50,
    log: Callable[[dict[str, float]], None] | None = None,
    accelerator: Accelerator | None = None,
) -> list[dict[str, float]]:
    """Train all weights of `clip`, in place.

    Args:
        clip: Usually a preset with random weights.
        dataset: Photos and labels in the common form.
        prompts: (C, T) class prompts, for the sigmoid loss.
        captions: A caption for each photo (see `label_sentences`), for the contrastive loss.
        objective: "sigmoid" or "contrastive". On scenes of several things the first learns far sooner.
        steps: Optimiser steps.
        batch_size: Photos a process.
        lr: Peak learning rate of AdamW; linear warm-up, then half a cosine down to zero.
        weight_decay: On weight matrices; biases, norms and embeddings go without.
        warmup: Share of the steps with a rising rate.
        clip_norm: Gradients are scaled down to this norm.
        min_crop: Smallest share of a photo's area in a random crop.
        flip: Random horizontal flips.
        workers: Processes that load photos.
        worker_timeout: Seconds to wait for photos; 0 for ever.
        seed: Of order and augmentation.
        log_every: Steps between records.
        log: Called with each record, on the main process.
        accelerator: Devices and precision; Accelerate's default without it.

    Returns:
        The records: step, loss (mean since the last record), lr, scale.

    Raises:
        ValueError: The objective is unknown, or its texts are absent or of another number than photos or classes.
        RuntimeError: The loss is no longer finite.
        PhotoError: A photo cannot be read, or its worker is stuck or dead.
    """
    from accelerate import Accelerator
    from accelerate.utils import send_to_device, set_seed
    from tqdm import tqdm

    texts = _tokenized(clip, dataset, objective, prompts, captions)
    accelerator = accelerator or Accelerator()
    set_seed(seed)
    transform = train_transform(clip.image_size, clip.image_mean, clip.image_std, min_scale=min_crop, flip=flip)
    photos = Photos(dataset, transform, seed=seed)
    stream = PhotoStream(
        InstanceOrder(len(photos), seed),
        batch_size,
        processes=accelerator.num_processes,
        rank=accelerator.process_index,
        steps=steps,
    )
    loader = photo_loader(photos, workers=workers, timeout=worker_timeout, batch_sampler=stream)
    if objective == "sigmoid":
        with torch.no_grad():
            clip.model.logit_scale.fill_(math.log(10))  # where SigLIP starts
    with compact_vocabulary(clip.model, texts):
        task = PretrainTask(clip, texts, objective, bias=_mean_log_odds(dataset)).train()
        optimizer = torch.optim.AdamW(_parameter_groups(task, weight_decay), lr=lr, betas=(0.9, 0.98))
        wrapped, optimizer = accelerator.prepare(task, optimizer)
        records: list[dict[str, float]] = []
        losses: list[Tensor] = []
        bar = tqdm(total=steps, desc="pretrain", unit="step", disable=not accelerator.is_main_process or None)
        for step, batch in enumerate(batches(loader, photos), start=1):
            for group in optimizer.param_groups:
                group["lr"] = lr * warmup_cosine(step - 1, steps, warmup)
            loss = wrapped(send_to_device(batch, accelerator.device))
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(wrapped.parameters(), clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                clip.model.logit_scale.clamp_(max=MAX_LOG_SCALE)
            losses.append(loss.detach())
            bar.update()
            if step % log_every == 0 or step == steps:
                mean = accelerator.reduce(torch.stack(losses).mean(), "mean").item()
                losses.clear()
                if not math.isfinite(mean):
                    raise RuntimeError(f"the loss is {mean} by step {step}; lower lr, now {lr:g}")
                rate, scale = optimizer.param_groups[0]["lr"], clip.model.logit_scale.exp().item()
                records.append({"step": step, "loss": mean, "lr": rate, "scale": scale})
                bar.set_postfix(loss=f"{mean:.3f}", scale=f"{scale:.1f}")
                if log is not None and accelerator.is_main_process:
                    log(records[-1])
        bar.close()
    clip.eval()
    return records


def pretrain_from_recipe(
    config: TrainConfig,
    folder: str | os.PathLike[str],
    *,
    objective: str = "sigmoid",
    steps: int = 3000,
    batch_size: int = 128,
    lr: float = 3e-3,
    half: bool = False,
) -> Path:
    """`clip-more pretrain`: train the model of a recipe on its data, print its zero-shot mAP, and save it.

    Of the recipe count data, model, templates, crop, flips, workers, seed and precision. Batch size and learning rates
    there are meant for fine-tuning; those given here are as in `pretrain`.

    Raises:
        FileExistsError: The folder holds something; known before training.
    """
    from clip_more.data.load import load_data
    from clip_more.evaluation.average_precision import average_precision
    from clip_more.evaluation.groups import format_table, split_map
    from clip_more.evaluation.predict import predict_logits
    from clip_more.models.classifier import Classifier
    from clip_more.models.clip import load_clip
    from clip_more.models.heads import PromptHead
    from clip_more.models.prompts import class_prompts, load_templates
    from clip_more.training.processes import make_accelerator

    _check_free(Path(folder))
    accelerator = make_accelerator(config)
    data = load_data(config)
    clip = load_clip(config.model, image_size=config.image_size, seed=config.seed)
    prompts = class_prompts(data.profile.names, load_templates(config.templates), config.class_prompts)
    photos = f"{len(data.train)} photos of {len(prompts)} classes"
    accelerator.print(f"pretraining {clip.source} on {photos}, {objective} loss")
    records = pretrain(
        clip, data.train, prompts=prompts, captions=label_sentences(data.train), objective=objective, steps=steps,
        batch_size=batch_size, lr=lr, min_crop=config.min_crop, flip=config.flip, workers=config.workers,
        worker_timeout=config.worker_timeout, seed=config.seed, accelerator=accelerator,
    )  # fmt: skip
    scale = float(clip.model.logit_scale.detach().exp())
    classifier = Classifier(clip, PromptHead(clip, prompts, scale)).to(accelerator.device)
    found = predict_logits(
        classifier,
        data.test,
        accelerator,
        batch_size=config.batch_size,
        workers=config.workers,
        worker_timeout=config.worker_timeout,
        label="zero-shot",
    )
    ap = average_precision(found.targets, found.scores, found.known)
    accelerator.print(format_table([("zero-shot", split_map(ap, data.profile))], profile=data.profile))
    if accelerator.is_main_process:
        save_pretrained(clip, folder, half=half, records=records)
    accelerator.wait_for_everyone()
    accelerator.print(f"saved in {folder}")
    return Path(folder)


def label_sentences(dataset: datasets.Dataset, template: str = "a photo of {}.", nothing: str = "nothing") -> list[str]:
    """A caption for each photo from its labels: `a photo of three, five and nine.`"""
    from clip_more.models.prompts import english_name

    names = [english_name(name) for name in class_names(dataset)]
    sentences = []
    for labels in dataset.with_format(None).select_columns(["labels"])["labels"]:
        words = [names[c] for c in labels] or [nothing]
        listed = " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]
        sentences.append(template.replace("{}", listed))
    return sentences


def save_pretrained(
    clip: Clip,
    folder: str | os.PathLike[str],
    *,
    half: bool = False,
    tokenizer: bool = True,
    records: Sequence[dict[str, float]] = (),
) -> Path:
    """Save `clip` in transformers' form: written aside, then renamed.

    Args:
        clip: On any device.
        folder: A folder that is not there yet, or is empty.
        half: Weights in fp16.
        tokenizer: Save the tokenizer too; without it `load_clip` builds CLIP's own.
        records: What `pretrain` returned; goes to `metrics.jsonl`.

    Raises:
        FileExistsError: The folder holds something.
    """
    target = Path(folder)
    _check_free(target)
    dtype = torch.float16 if half else torch.float32
    weights = {name: tensor.detach().cpu().to(dtype) for name, tensor in clip.model.state_dict().items()}
    with filled_aside(target) as aside:
        clip.model.save_pretrained(aside, state_dict={name: tensor.contiguous() for name, tensor in weights.items()})
        clip.image_processor.save_pretrained(aside)
        if tokenizer:
            clip.tokenizer.save_pretrained(aside)
        if records:
            lines = "".join(json.dumps(record) + "\n" for record in records)
            (aside / "metrics.jsonl").write_text(lines, encoding="utf-8")
    return target


def _check_free(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already; name another folder, or remove it")


def _tokenized(
    clip: Clip,
    dataset: datasets.Dataset,
    objective: str,
    prompts: Sequence[Sequence[str]] | None,
    captions: Sequence[str] | None,
) -> Tensor:
    """Token ids of the texts that the objective trains on: (N, L) captions, or (C, T, L) prompts."""
    if objective == "contrastive":
        if captions is None or len(captions) != len(dataset):
            given = "none" if captions is None else len(captions)
            raise ValueError(f"the contrastive loss needs a caption for each of {len(dataset)} photos; {given} given")
        return clip.tokenize(captions)
    if objective == "sigmoid":
        classes = len(class_names(dataset))
        if prompts is None or len(prompts) != classes:
            given = "none" if prompts is None else len(prompts)
            raise ValueError(f"the sigmoid loss needs prompts for each of {classes} classes; {given} given")
        return clip.tokenize([text for row in prompts for text in row]).unflatten(0, (classes, -1))
    raise ValueError(f"objective is {objective!r}; choose one of {', '.join(OBJECTIVES)}")


def _mean_log_odds(dataset: datasets.Dataset) -> float:
    """Log-odds of a positive pair: where the sigmoid loss's bias belongs before anything is learnt."""
    targets, known = multi_hot(dataset)
    share = np.clip(targets.sum() / max(known.sum(), 1), 1e-4, 1 - 1e-4)
    return float(np.log(share / (1 - share)))


def _parameter_groups(task: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices with weight decay; biases, norms and embeddings without."""
    decayed = decays(task)
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in task.named_parameters():
        groups[decayed[name]].append(parameter)
    return [
        {"params": groups[True], "weight_decay": weight_decay},
        {"params": groups[False], "weight_decay": 0.0},
    ]
