"""From a recipe to a run: its data and CLIP read, its folder claimed. What is refused is refused here."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed

from clip_more.config import ConfigError, TrainConfig
from clip_more.data.form import label_pairs
from clip_more.data.load import LongTailData, load_data
from clip_more.data.paths import write_skipped
from clip_more.evaluation.results import versions
from clip_more.models.classifier import load_encoder
from clip_more.training.anchor import check_pull
from clip_more.training.build import build_classifier, check_method
from clip_more.training.checkpoint import clean
from clip_more.training.guards import on_main
from clip_more.training.metrics_log import MetricsLog
from clip_more.training.run import Run
from clip_more.training.run_folder import (
    ZERO_SHOT,
    claim,
    clear_leftovers,
    read_test_ids,
    save_test_ids,
    write_recipe,
)
from clip_more.training.run_lock import alone
from clip_more.training.signals import StopRequest


def open_run(
    config: TrainConfig, accelerator: Accelerator, log: MetricsLog, stop: StopRequest, stack: ExitStack
) -> Run:
    """Data, CLIP, and the run's folder, which is this process's own until `stack` ends; refusals come before it."""
    set_seed(config.seed)
    data = load_data(config, read_test_ids(config.run_folder))
    encoder = load_encoder(config.model, image_size=config.image_size, geometry=config.geometry, seed=config.seed)
    classifier = build_classifier(config, encoder, data.profile)
    notes = check_method(config, classifier, data.profile)
    run = Run(config, accelerator, data, classifier, config.run_folder, log, stop)
    check_pull(run.plan)
    on_main(accelerator, lambda: _claim(run, stack))
    _require_shared_folder(run)
    accelerator.print(f"run {run.folder} | {encoder.source} at {encoder.image_size} px | {_describe(data)}")
    accelerator.print(f"{_describe_method(config)}")
    for note in [*notes, *_note_labels(config, data)]:
        accelerator.print(f"note: {note}")
    classifier.to(accelerator.device)
    return run


def accept_changes(run: Run) -> None:
    """The checkpoint fits: the folder's recipe is the new one from here on."""
    write_recipe(run.config, versions())
    if run.changes:
        run.log.write("recipe_changed", changes=run.changes)
        changed = ", ".join(f"{key} from {before!r} to {now!r}" for key, (before, now) in run.changes.items())
        print(f"note: going on under a changed recipe: {changed}")


def _claim(run: Run, stack: ExitStack) -> None:
    """Keep others out of the run's folder, and clear away what a kill left half-written."""
    folder, data = run.folder, run.data
    stack.enter_context(alone(folder))
    run.changes.update(claim(run.config, versions()))
    run.log.active = True
    if run.changes:  # they may be of how photos are judged
        (folder / ZERO_SHOT).unlink(missing_ok=True)
    clear_leftovers(folder)
    clean(run.checkpoints)
    save_test_ids(folder, data.drawn_test)
    if data.skipped:
        write_skipped(data.skipped, folder / "skipped.csv")


def _require_shared_folder(run: Run) -> None:
    """Refuse to go on where a process does not see the folder that the main process writes."""
    if run.accelerator.num_processes == 1:
        return
    recipe = run.folder / "config.yaml"
    held = recipe.read_text(encoding="utf-8") if recipe.is_file() else ""
    theirs = broadcast_object_list([held])[0]
    if held != theirs:
        raise ConfigError(f"{run.folder} is not seen by process {run.accelerator.process_index}: all must share it")


def _describe_method(config: TrainConfig) -> str:
    tuning = f"more (a tail of rank {config.rho:g}, and L_MORE)" if config.tuning == "more" else config.tuning
    if config.discrepancy_pair == "dropout":
        tuning += " (and L_MORE between two draws of dropout)"
    return f"tuning {tuning} | head {config.head} | loss {config.loss} | sampler {config.sampler}"


def _note_labels(config: TrainConfig, data: LongTailData) -> list[str]:
    """A sentence where several labels are reckoned with, and every photo has one."""
    if config.task == "single_label" or sum(data.profile.counts) != data.profile.photos:
        return []
    if (np.bincount(label_pairs(data.train)[0], minlength=len(data.train)) != 1).any():
        return []
    return [
        "every train photo has exactly one label; with task: single_label top-1 is reported, and losses such as ce can "
        "be had"
    ]


def _describe(data: LongTailData) -> str:
    sizes = {group: len(data.profile.indices(group)) for group in ("head", "medium", "tail")}
    groups = ", ".join(f"{size} {group}" for group, size in sizes.items())
    held_out = f", {len(data.val)} held out" if data.val is not None else ""
    skipped = f", {len(data.skipped)} absent and skipped" if data.skipped else ""
    return (
        f"{len(data.train)} train photos{held_out}, {len(data.test)} test{skipped} | "
        f"{len(data.profile.names)} classes: {groups}"
    )
