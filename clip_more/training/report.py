"""The two ends of a run: what the untouched CLIP could do, and what came out."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
from safetensors import SafetensorError

from clip_more.adapters import tail
from clip_more.adapters.layer import TailLayer
from clip_more.config import LOSSES_OF_ONE_LABEL
from clip_more.evaluation.chance import chance_map
from clip_more.evaluation.judge import results_of
from clip_more.evaluation.plots import plot_ap_by_frequency
from clip_more.evaluation.predict import Predictions
from clip_more.evaluation.results import identify
from clip_more.evaluation.run_events import read_events
from clip_more.evaluation.run_plots import plot_training
from clip_more.evaluation.scores import load_scores, save_scores
from clip_more.evaluation.thresholds import fit_thresholds
from clip_more.hub import export_feature_run, export_run
from clip_more.models.classifier import Classifier
from clip_more.models.clip import Clip
from clip_more.training.build import prompt_classifier
from clip_more.training.checkpoint import CheckpointError
from clip_more.training.run import Run
from clip_more.training.run_folder import ZERO_SHOT


def judge_untouched(run: Run) -> np.ndarray | None:
    """Test logits (N, C) of the CLIP as it was loaded, by prompts, once a run; None where it has no text tower."""
    encoder = run.classifier.encoder
    if not isinstance(encoder, Clip):
        return None
    path = run.folder / ZERO_SHOT
    image_ids = list(run.data.test["image_id"])
    if path.exists() and (scores := load_scores(path)).image_ids == image_ids:
        return scores.rows["zero-shot"]
    run.accelerator.wait_for_everyone()
    if isinstance(run.classifier, Classifier):
        predictions = run.logits(run.data.test, "zero-shot")
    else:
        by_prompts = prompt_classifier(run.config, encoder, run.data.profile).to(run.accelerator.device)
        predictions = replace(run, classifier=by_prompts).logits(run.data.test, "zero-shot")
    if run.accelerator.is_main_process:
        save_scores(path, {"zero-shot": predictions.scores}, predictions.targets, predictions.known, image_ids)
    run.accelerator.wait_for_everyone()
    return predictions.scores


def report(run: Run, before: np.ndarray | None) -> None:
    """Judge the kept weights on test and export them; results.json comes last and says that the run is done.

    Args:
        run: The run, trained.
        before: (N, C) test logits of the untouched CLIP, where it is one.
    """
    scores = {} if before is None else {"zero-shot": before}
    if any(isinstance(module, TailLayer) for module in run.classifier.modules()):
        with tail(run.classifier, enabled=False):
            scores["general"] = run.logits(run.data.test, "general part").scores
    predictions = run.logits(run.data.test, "full model")
    scores["merged"] = predictions.scores
    thresholds = _thresholds(run)
    if run.accelerator.is_main_process:
        try:
            _write(run, predictions, scores, thresholds)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{run.folder}: the exports could not be written: {getattr(error, 'strerror', None) or error} "
                f"({shutil.disk_usage(run.folder).free / 1e6:.1f} MB free there). All steps are done and saved: make "
                "room, then run the same command again"
            ) from error


def _write(run: Run, predictions: Predictions, scores: dict[str, np.ndarray], thresholds: np.ndarray | None) -> None:
    run.data.facts.update(_declared(run))
    encoder = run.classifier.encoder
    fitted = None if thresholds is None else {"merged": thresholds}
    results = results_of(run.config, run.data, encoder, predictions, scores, encoder.source, fitted)
    results.chance = chance_map(predictions.targets, run.data.profile, known=predictions.known)
    cuts = None if thresholds is None else thresholds.tolist()
    classifier, profile = run.classifier, run.data.profile
    if isinstance(classifier, Classifier):
        merged = export_run(run.folder, classifier, profile, run.config, results, cuts)
    else:
        merged = export_feature_run(run.folder, classifier, profile, run.config, results, cuts)
    results.checkpoint = identify(merged)
    run.data.profile.save(run.folder / "class_profile.json")
    folder = run.folder / "report"
    if run.config.save_scores:
        file = folder / "scores.safetensors"
        image_ids = list(run.data.test["image_id"])
        results.scores = save_scores(file, scores, predictions.targets, predictions.known, image_ids)
    try:
        ap = results.ap
        if "zero-shot" in ap:
            plot_ap_by_frequency(run.data.profile, ap["zero-shot"], ap["merged"], folder / "ap_by_frequency.png")
        plot_training(run.folder / "metrics.jsonl", folder / "training.png")
    except (ImportError, ValueError) as error:  # no reason to lose the run's results
        print(f"figures are left out: {error}")
    results.save(folder / "results.json")
    (run.folder / ZERO_SHOT).unlink(missing_ok=True)


def _declared(run: Run) -> dict[str, list[str]]:
    """What makes this run another than one go of its recipe, over all its starts."""
    try:
        events = read_events(run.folder / "metrics.jsonl")
    except ValueError as error:  # no reason to lose the run's results
        return {"metrics_log_damaged": [str(error)]}
    changes = [
        f"{key} from {before!r} to {now!r}"
        for event in events
        if event["event"] == "recipe_changed"
        for key, (before, now) in event["changes"].items()
    ]
    resumed = [f"step {e['step']}: {e['why']}" for e in events if e["event"] == "resume" and not e["exact"]]
    return {k: v for k, v in (("recipe_changed", changes), ("resumed_not_bit_exact", resumed)) if v}


def _thresholds(run: Run) -> np.ndarray | None:
    """Probabilities (C,) with the best F1 on the held-out part of train.

    None where nothing is held out of train, or classes exclude each other.
    """
    if run.data.val is None or run.config.legacy_select_on_test or run.config.loss in LOSSES_OF_ONE_LABEL:
        return None
    held_out = run.logits(run.data.val, "thresholds")
    return fit_thresholds(held_out.targets, held_out.scores, held_out.known)
