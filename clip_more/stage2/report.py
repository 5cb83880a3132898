"""What a method leaves: the classifier, its results beside those of stage 1, how it was chosen, and the curve."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from clip_more.config import TrainConfig
from clip_more.data.load import LongTailData
from clip_more.evaluation.average_precision import to_scores
from clip_more.evaluation.bootstrap import paired_difference
from clip_more.evaluation.chance import chance_map
from clip_more.evaluation.judge import results_of
from clip_more.evaluation.predict import Predictions
from clip_more.evaluation.results import Results
from clip_more.evaluation.scores import save_scores
from clip_more.evaluation.single_label import paired_top1, single_labels
from clip_more.evaluation.thresholds import fit_thresholds
from clip_more.models.classifier import AnyClassifier
from clip_more.models.feature_heads import FeatureHead
from clip_more.models.head_files import read_description, save_head
from clip_more.stage2.cached import Cached
from clip_more.stage2.choose import Selection
from clip_more.stage2.folder import SELECTION, link_encoder
from clip_more.stage2.measure import logits_of
from clip_more.stage2.plots import plot_selection

JOINT = "joint"
FITTED = ("crt", "ncm", "maxnorm_cb")
ON = {"held_out": "held-out photos", "train_part": "photos of train, which the encoder was trained on"}


def write_method(
    folder: Path,
    merged: Path,
    config: TrainConfig,
    data: LongTailData,
    classifier: AnyClassifier,
    before: FeatureHead,
    head: FeatureHead,
    features: dict[str, Cached],
    selection: Selection,
    record: dict[str, Any],
) -> None:
    """Fill the folder of a method.

    Args:
        folder: Empty.
        merged: Of the run; its encoder's files are linked.
        config: Recipe of the run.
        data: Its data.
        classifier: Of stage 1; says how photos come in.
        before: Its head.
        head: What the method made.
        features: Of test, and of val where there are held-out photos.
        selection: How it was chosen.
        record: The same and more, for `selection.json`.
    """
    method, description = selection.method, read_description(merged)
    test = features["test"]
    scores = {JOINT: logits_of(before, test.features), method: logits_of(head, test.features)}
    thresholds = _thresholds(config, features.get("val"), before, head, method)
    predictions = Predictions(scores[method], test.targets.numpy(), test.known.numpy())
    start = description.get("trained_from") or "unknown"
    results = results_of(config, data, classifier.encoder, predictions, scores, start, thresholds)
    chosen_on = _chosen_on(description.get("selection", "unknown"), record["selection"])
    results.protocol = replace(results.protocol, selection=chosen_on)
    results.chance = chance_map(predictions.targets, data.profile, known=predictions.known)
    results.evaluated["stage2"] = {
        "method": method,
        "chosen": selection.chosen,
        "by": selection.measure,
        "selection": record["selection"],
        "keeps_ap": selection.keeps_ap,
        **_differences(results, predictions, scores, method, config),
    }
    link_encoder(merged, folder)
    content = {key: description.get(key) for key in ("class_names", "profile", "trained_from", "geometry")}
    # Methods that fit a classifier of their own do so by a softmax where every photo has one label.
    softmax = config.task == "single_label" if method in FITTED else bool(description.get("softmax", False))
    content |= {"selection": chosen_on, "softmax": softmax}
    own = None if thresholds is None else thresholds[method].tolist()
    stage2 = {"method": method, "chosen": selection.chosen, "selection": record["selection"]}
    save_head(
        folder, head, {**{k: v for k, v in content.items() if v is not None}, "thresholds": own, "stage2": stage2}
    )
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / SELECTION).write_text(text + "\n", encoding="utf-8")
    try:
        if len(selection.candidates) > 1:
            on = f"{selection.photos:,} {ON[record['selection']]}"
            plot_selection(selection, folder / "selection.png", on=on, title=f"{config.run_name}: {method}")
    except (ImportError, ValueError) as error:  # no reason to lose the results
        print(f"the figure is left out: {error}")
    if config.save_scores:
        file, image_ids = folder / "scores.safetensors", list(data.test["image_id"])
        results.scores = save_scores(file, scores, predictions.targets, predictions.known, image_ids)
    results.save(folder / "results.json")


def _thresholds(
    config: TrainConfig, val: Cached | None, before: FeatureHead, head: FeatureHead, method: str
) -> dict[str, np.ndarray] | None:
    """Of best F1 on held-out photos, for both rows alike; None where there are none."""
    if val is None or config.task == "single_label":
        return None
    targets, known = val.targets.numpy(), val.known.numpy()
    return {
        row: fit_thresholds(targets, logits_of(own, val.features), known)
        for row, own in ((JOINT, before), (method, head))
    }


def _chosen_on(stage1: str, stage2: str) -> str:
    """What a classifier was chosen on, over both stages: whichever says least for it."""
    if stage1 in ("legacy_test", "unknown") or stage2 == "given":
        return stage1
    return stage2


def _differences(
    results: Results, predictions: Predictions, scores: dict[str, np.ndarray], method: str, config: TrainConfig
) -> dict[str, Any]:
    """What the method gains over stage 1, with intervals over test photos that both share."""
    if not config.bootstrap:
        return {}
    targets, profile = predictions.targets, results.profile
    before, after = (to_scores(scores[row], results.protocol.score) for row in (JOINT, method))
    found: dict[str, Any] = {
        "map_difference": paired_difference(
            targets, before, after, profile, known=predictions.known, draws=config.bootstrap, form=results.protocol.ap
        )
    }
    if config.task == "single_label":
        labels = single_labels(targets, profile, predictions.known)
        found["top1_difference"] = paired_top1(labels, scores[JOINT], scores[method], profile, draws=config.bootstrap)
    return found
