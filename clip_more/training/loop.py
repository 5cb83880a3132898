"""One run, from a recipe to its report: read this file to see what training does."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

from accelerate.utils import send_to_device, set_seed
from tqdm import tqdm

from clip_more.config import ConfigError, TrainConfig
from clip_more.data.loading import batches
from clip_more.evaluation.average_precision import average_precision, to_scores
from clip_more.evaluation.groups import split_map
from clip_more.hub import push_folder
from clip_more.losses import LdamLoss
from clip_more.models.classifier import Classifier
from clip_more.training.build import build_task
from clip_more.training.checkpoint import list_checkpoints, require_space
from clip_more.training.forgetting import note_correct
from clip_more.training.guards import TrainingError, not_finite, on_main, require_scale, shared_failure, step_losses
from clip_more.training.metrics_log import MetricsLog
from clip_more.training.open_run import accept_changes, open_run
from clip_more.training.prepared import Prepared, as_number, prepare
from clip_more.training.processes import make_accelerator
from clip_more.training.report import judge_untouched, report
from clip_more.training.run import Run
from clip_more.training.run_folder import finished
from clip_more.training.schedule import warmup_cosine
from clip_more.training.signals import Stopped, StopRequest
from clip_more.training.start import before_first_step, train_photos
from clip_more.training.state import Progress, TrainingState
from clip_more.training.task import LongTailTask
from clip_more.training.vocabulary import compact_vocabulary
from clip_more.training.watch import Throughput, flat, gradient_norms, memory, tail_share


def train(config: TrainConfig) -> Path:
    """Train, or go on with, the run that `config` names; returns its folder.

    Raises:
        ConfigError: If processes, data, model or run folder are not what the recipe says; nothing is written then.
        TrainingError: If the loss is no longer finite, or another process failed.
        CheckpointError: If a checkpoint cannot be written, or none can be read.
        Stopped: If a signal asked for it; the run has saved.
    """
    accelerator = make_accelerator(config)
    log = MetricsLog(config.run_folder)
    try:
        with StopRequest() as stop, shared_failure(accelerator), ExitStack() as stack:
            if finished(config, accelerator.num_processes):
                accelerator.print(f"run {config.run_folder} is finished; name another with --run NAME to train again")
            else:
                _train(open_run(config, accelerator, log, stop, stack))
            if config.push_to_hub and accelerator.is_main_process:
                print(f"uploaded to {push_folder(config.run_folder / 'merged', config.push_to_hub)}")
    except ConfigError:
        raise  # refused: the run is what it was
    except Exception as error:
        log.write_if_possible("failed", reason=str(error))
        raise
    return config.run_folder


def _train(run: Run) -> None:
    config, classifier = run.config, run.classifier
    # Judging the untouched CLIP and fitting the head open every photo before any is trained on.
    before = judge_untouched(run)
    if not list_checkpoints(run.checkpoints):
        before_first_step(run)
    vocabulary: AbstractContextManager[None] = nullcontext()
    if isinstance(classifier, Classifier) and config.text_tower == "train" and config.tuning in ("full", "more"):
        vocabulary = compact_vocabulary(classifier.clip.model, classifier.head.input_ids)
    with vocabulary:
        optimise(run, build_task(config, classifier, run.data.profile))
    report(run, before)
    run.log.write("done")


def optimise(run: Run, task: LongTailTask) -> None:
    """The loop: from the last checkpoint, or from the start, to the last step; leaves the kept weights in `task`."""
    config, accelerator = run.config, run.accelerator
    plan = run.plan
    prepared = prepare(run, task, plan)
    wrapped, optimizer = prepared.wrapped, prepared.optimizer
    progress = Progress.at_start(run, prepared, plan)
    state = TrainingState(run, prepared, progress)
    _start(run, state, prepared.resumable)

    photos, loader = train_photos(run, plan, progress.step)
    bar = tqdm(
        total=plan.total,
        initial=progress.step,
        desc=config.run_name,
        unit="step",
        disable=not accelerator.is_main_process or None,
    )
    throughput = Throughput()
    window: list[dict[str, Any]] = []
    wrapped.train()
    with run.stop.deferred():
        for batch in batches(loader, photos):
            batch = send_to_device(batch, accelerator.device, non_blocking=True)
            done = progress.step
            weight = plan.alpha(done) if task.discrepancy is not None else 0.0
            if isinstance(prepared.trained.base_loss, LdamLoss):
                prepared.trained.base_loss.at(done / plan.total)
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * warmup_cosine(done, plan.total, config.warmup)
            with accelerator.accumulate(wrapped):
                with accelerator.autocast():
                    last, fresh = accelerator.sync_gradients, done % config.text_refresh == 0
                    losses = wrapped(batch, alpha=weight, last=last, fresh=fresh)
                if prepared.strength is not None and losses["discrepancy"] is not None:
                    weight = prepared.strength.apply(losses, weight, step=done, first=not window)
                accelerator.backward(losses["loss"])
                window.append({name: losses[name] for name in ("loss", "base", "discrepancy")})
                if accelerator.sync_gradients:
                    logged = plan.logs(done + 1)
                    norms = gradient_norms(prepared.trained) if logged else {}
                    if accelerator.scaler is not None:  # clipping unscales the gradients, once
                        norms = {part: norm / accelerator.scaler.get_scale() for part, norm in norms.items()}
                    norm = accelerator.clip_grad_norm_(wrapped.parameters(), config.clip_norm or math.inf)
                    values, stopping = step_losses(accelerator, window, norm, run.stop.name is not None)
                    window.clear()
                    broken = not_finite(values, scaled=accelerator.scaler is not None)
                    if broken:
                        _skip_or_stop(run, progress, broken)
                        optimizer.zero_grad()  # AdamW leaves alone what has no gradient
                optimizer.step()
                optimizer.zero_grad()
            if not accelerator.sync_gradients:
                continue

            progress.step = step = done + 1
            moved = broken is None and not accelerator.optimizer_step_was_skipped
            prepared.after_step(step, moved=moved)
            require_scale(accelerator, step)
            throughput.add(plan.photos_a_step)
            bar.update()
            bar.set_postfix(loss=f"{values['loss']:.3f}", refresh=False)
            if bar.disable and (step % plan.epoch == 0 or step == plan.total):  # a log file, not a terminal
                accelerator.print(f"step {step} of {plan.total}: loss {values['loss']:.3f}")
            if logged:
                watched = values | {"alpha": weight, "photos_per_second": throughput.reading()}
                if prepared.strength is not None:
                    watched["gradient_ratio"] = prepared.strength.measured(weight)
                _watch(run, prepared, progress, watched, norms)
            with throughput.pause():
                if plan.judges(step):
                    _validate(run, prepared, state)
                if config.forgetting and plan.ends_epoch(step):
                    note_correct(run, prepared, step)
                # Not while steps are skipped: the weights may be what is wrong, and older ones would have to go.
                if prepared.resumable and (stopping or step == plan.total or (plan.saves(step) and moved)):
                    state.save()
            if stopping:
                _stop(run, step, plan.total, saved=prepared.resumable)
    if accelerator.num_processes == 1 and run.stop.name is not None:  # came while the last step was saved
        _stop(run, plan.total, plan.total, saved=prepared.resumable)
    bar.close()
    if config.trackers:
        accelerator.end_training()
    if config.keep == "best":
        state.load_best()
    prepared.finish()


def _start(run: Run, state: TrainingState, resumable: bool) -> None:
    """Go on from the last checkpoint, or make sure that there is room for those to come."""
    config, accelerator, progress = run.config, run.accelerator, state.progress
    needed = state.bytes_to_come()
    on_main(accelerator, lambda: require_space(run.folder, needed, "this run's checkpoints and exports"))
    if not resumable:
        accelerator.print("note: under DeepSpeed no checkpoints are written; a run that is stopped starts again")
    why = state.resume() if resumable else None
    on_main(accelerator, lambda: accept_changes(run))
    run.log.write(
        "start", total=progress.total, photos=len(run.data.train), photos_a_step=progress.photos_a_step,
        processes=progress.processes, distribution=progress.distribution, precision=config.mixed_precision,
    )  # fmt: skip
    if why is not None:
        accelerator.print(f"going on from step {progress.step}")
        run.log.write("resume", step=progress.step, offset=progress.offset, exact=not why, why=why or None)
    if why:
        accelerator.print(f"note: not bit for bit what one go would have given: {why}")
    elif why is None and accelerator.num_processes > 1:
        set_seed(config.seed + accelerator.process_index)  # each its own dropout masks
    if config.trackers:
        accelerator.init_trackers(config.run_name, config=_plain(config))


def _watch(
    run: Run, prepared: Prepared, progress: Progress, values: dict[str, float | None], norms: dict[str, float]
) -> None:
    """One line of metrics.jsonl, and of the trackers."""
    finite = {name: None if value is None or not math.isfinite(value) else value for name, value in values.items()}
    scale = getattr(prepared.head, "log_scale", None)
    watched: dict[str, Any] = {
        **finite,
        "gradient_norms": norms,
        "tail_share": tail_share(prepared.trained),
        "lr": prepared.optimizer.param_groups[0]["lr"],
        "scale": None if scale is None else as_number(scale.exp()),
        "memory": memory(run.accelerator.device),
        "skipped": progress.skipped,
    }
    run.log.write("train", step=progress.step, **({"discrepancy": None} | watched))
    if run.config.trackers:
        run.accelerator.log(flat(watched), step=progress.step)


def _validate(run: Run, prepared: Prepared, state: TrainingState) -> None:
    """mAP on the held-out part of train; the best weights so far are kept where the recipe selects."""
    with prepared.judged():
        predictions = run.logits(run.data.val, "validation")
    ranked = to_scores(predictions.scores, run.config.score)
    ap = average_precision(predictions.targets, ranked, predictions.known, form=run.config.ap)
    maps = split_map(ap, run.data.profile)
    split = "test" if run.config.legacy_select_on_test else "val"
    progress, total = state.progress, maps["total"] or 0.0
    run.log.write("eval", step=progress.step, split=split, map=maps)
    if run.config.keep == "best" and (progress.best is None or total > progress.best):
        progress.best = total
        state.save_best()


def _skip_or_stop(run: Run, progress: Progress, broken: str) -> None:
    """What a step does whose loss or gradient is not finite, before the weights move.

    Raises:
        TrainingError: On all processes alike.
    """
    config, step = run.config, progress.step + 1
    if config.not_finite == "skip" and progress.skipped < config.max_skipped:
        progress.skipped += 1
        run.log.write("skipped", step=step, why=broken)
        run.accelerator.print(f"note: step {step} is left out, {progress.skipped} so far: {broken}")
        return
    last = next(reversed(list_checkpoints(run.checkpoints)), None)
    before = f", after {progress.skipped} skipped steps" if progress.skipped else ""
    raise TrainingError(
        f"not finite at step {step}{before}: {broken}. A lower lr or amplitude may help. Last checkpoint before: "
        f"{last or 'none yet'}"
    )


def _stop(run: Run, step: int, total: int, *, saved: bool) -> None:
    signal = run.stop.name or "a signal to another process"
    run.log.write("stopped", step=step, signal=signal)
    where = f"saved at step {step} of {total} in {run.checkpoints}"
    raise Stopped(f"{signal}: {where if saved else f'at step {step} of {total}, nothing saved'}", agreed=True)


def _plain(config: TrainConfig) -> dict[str, Any]:
    """Config values that every tracker takes."""
    return {key: v if isinstance(v, int | float | str | bool) else str(v) for key, v in config.to_dict().items()}
