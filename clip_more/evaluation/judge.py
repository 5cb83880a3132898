"""Judge checkpoints that are already there: one classifier, or a run's three models side by side."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clip_more.config import TrainConfig
from clip_more.data.load import LongTailData
from clip_more.data.prepared import prepared_settings
from clip_more.evaluation.chance import chance_map
from clip_more.evaluation.predict import Predictions, predict_logits
from clip_more.evaluation.results import Protocol, Results, identify
from clip_more.models.classifier import (
    AnyClassifier,
    Classifier,
    Encoder,
    FeatureClassifier,
    load_classifier,
    load_encoder_of,
)
from clip_more.models.clip import Clip, load_clip
from clip_more.models.head_files import read_description
from clip_more.models.heads import PromptHead
from clip_more.models.prompts import class_prompts, load_templates

if TYPE_CHECKING:
    from accelerate import Accelerator


def judge_checkpoint(
    folder: str | Path, config: TrainConfig, data: LongTailData, accelerator: Accelerator
) -> tuple[Results, Predictions]:
    """Results of an exported classifier on a recipe's test photos.

    Args:
        folder: A folder with `multilabel.json` or `head.json`, such as a run's `merged/`.
        config: Names the protocol, batch size and workers.
        data: Its test photos are judged; groups come from its profile.
        accelerator: Splits the photos over its processes.

    Raises:
        FileNotFoundError: If the folder is no exported classifier.
        ValueError: If its classes are not those of the data set.
    """
    classifier, names = load_classifier(folder, config.geometry)
    _same_classes(names, data, folder)
    content, row = read_description(folder), Path(folder).name
    thresholds = content.get("thresholds")
    predictions = test_logits(classifier, config, data, accelerator, "evaluating")
    results = results_of(
        config,
        data,
        classifier.encoder,
        predictions,
        {row: predictions.scores},
        content.get("trained_from") or "unknown",
        None if thresholds is None else {row: np.asarray(thresholds)},
    )
    results.chance = chance_map(predictions.targets, data.profile, known=predictions.known)
    results.checkpoint = identify(folder)
    results.protocol = _selected_as(content, results.protocol)
    return results, predictions


def judge_run(folder: str | Path, config: TrainConfig, data: LongTailData, accelerator: Accelerator) -> Results:
    """The untouched CLIP by prompts (of a CLIP), the general part alone, and the merged model, each by group.

    Args:
        folder: Of a finished run.
        config: Its recipe.
        data: Its data.
        accelerator: Splits the photos over its processes.

    Raises:
        FileNotFoundError: If the run has no merged checkpoint yet.
        ValueError: If its classes are not those of the data set.
    """
    folder = Path(folder)
    merged, names = load_classifier(folder / "merged", config.geometry)
    content = read_description(folder / "merged")
    _same_classes(names, data, folder / "merged")
    scores: dict[str, np.ndarray] = {}
    start = content.get("trained_from") or config.model
    if isinstance(merged.encoder, Clip):
        clip = load_clip(config.model, image_size=config.image_size, geometry=config.geometry, seed=config.seed)
        start = clip.source
        scores["zero-shot"] = test_logits(
            _by_prompts(clip, names, config), config, data, accelerator, "zero-shot"
        ).scores
    if (folder / "general").is_dir():
        general = general_classifier(folder / "general", merged, names, config)
        scores["general"] = test_logits(general, config, data, accelerator, "general").scores
    predictions = test_logits(merged, config, data, accelerator, "merged")
    scores["merged"] = predictions.scores
    fitted = None if content.get("thresholds") is None else {"merged": np.asarray(content["thresholds"])}
    results = results_of(config, data, merged.encoder, predictions, scores, start, fitted)
    results.protocol = _selected_as(content, results.protocol)
    results.chance = chance_map(predictions.targets, data.profile, known=predictions.known)
    results.checkpoint = identify(folder / "merged")
    return results


def _by_prompts(clip: Clip, names: list[str], config: TrainConfig) -> Classifier:
    prompts = class_prompts(names, load_templates(config.templates), config.class_prompts)
    return Classifier(clip, PromptHead(clip, prompts, scale=float(clip.model.logit_scale.detach().exp()))).eval()


def general_classifier(folder: Path, merged: AnyClassifier, names: list[str], config: TrainConfig) -> AnyClassifier:
    """The general part of a run, under the head of the merged model."""
    encoder = load_encoder_of(folder, config.geometry)
    if isinstance(merged, FeatureClassifier):
        return FeatureClassifier(encoder, merged.head).eval()
    assert isinstance(encoder, Clip)
    classifier = _by_prompts(encoder, names, config)
    classifier.head.load_state_dict(merged.head.state_dict())
    return classifier


def _selected_as(description: dict[str, Any], protocol: Protocol) -> Protocol:
    """The protocol with what the checkpoint itself says it was chosen on, whatever the recipe at hand says."""
    return replace(protocol, selection=description.get("selection", "unknown"))


def protocol_of(config: TrainConfig, encoder: Encoder) -> Protocol:
    """The protocol that a recipe declares; geometry and interpolation are those of the encoder."""
    selected = "legacy_test" if config.legacy_select_on_test else "held_out"
    return Protocol(
        score=config.score,
        ap=config.ap,
        difficult=_difficult(config),
        unlabelled=config.unlabelled,
        geometry=encoder.geometry,
        interpolation=encoder.interpolation,
        views=config.views,
        selection=selected if config.keep == "best" else "none",
    )


def _difficult(config: TrainConfig) -> str | None:
    """What difficult objects of the test photos count as, where the data knows of them."""
    if config.dataset == "prepared":
        settings = prepared_settings(str(config.data_root))
        return (settings["test_difficult"] or settings["difficult"]) if settings["dataset"] == "voc" else None
    return (config.test_difficult or config.difficult) if config.dataset == "voc" else None


def results_of(
    config: TrainConfig,
    data: LongTailData,
    encoder: Encoder,
    predictions: Predictions,
    scores: dict[str, np.ndarray],
    start: str,
    thresholds: Mapping[str, np.ndarray] | None = None,
) -> Results:
    """Results on the test photos of a recipe, with the protocol it declares.

    Args:
        config: The recipe.
        data: Its test photos and class profile.
        encoder: Says how photos were brought into a square.
        predictions: Of any of the models; its labels are used.
        scores: Row name to test logits (N, C).
        start: What the row `zero-shot`, or the fine-tuning, started from: random weights are named as such.
        thresholds: Row name to probabilities (C,) fitted on held-out photos; 0.5 for the others.
    """
    evaluated: dict[str, Any] = {
        "dataset": config.dataset_name or config.dataset,
        "split": config.test_list or config.test_split,
        "images": len(data.test),
        "start": start,
        **data.facts,
    }
    stored = data.facts.get("prepared", {}).get("short_side", encoder.image_size)
    if stored < encoder.image_size:
        warnings.warn(
            f"the prepared photos have a shorter side of {stored} pixels, and the model wants {encoder.image_size}: "
            "they are enlarged; prepare them again with a larger --short_side",
            stacklevel=2,
        )
    return Results.from_scores(
        predictions.targets,
        scores,
        data.profile,
        known=predictions.known,
        protocol=protocol_of(config, encoder),
        thresholds=thresholds,
        bootstrap=config.bootstrap,
        single_label=config.task == "single_label",
        evaluated=evaluated,
    )


def test_logits(
    classifier: AnyClassifier, config: TrainConfig, data: LongTailData, accelerator: Accelerator, label: str
) -> Predictions:
    """Logits of a recipe's test photos, read as the recipe says; `label` names the progress bar."""
    classifier.to(accelerator.device)
    return predict_logits(
        classifier,
        data.test,
        accelerator,
        batch_size=config.batch_size,
        workers=config.workers,
        worker_timeout=config.worker_timeout,
        label=label,
        views=config.views,
    )


def _same_classes(names: list[str], data: LongTailData, folder: str | Path) -> None:
    expected = list(data.profile.names)
    if names == expected:
        return
    absent = [name for name in names if name not in expected]
    extra = [name for name in expected if name not in names]
    if absent or not extra:
        what = f"the data set lacks {', '.join(absent[:5])}" if absent else "the data set has them in another order"
    else:
        what = f"the data set also has {', '.join(extra[:5])}"
    raise ValueError(
        f"{folder} was trained on {len(names)} classes ({', '.join(names[:3])}, ...), but {what}; "
        f"list the checkpoint's classes, in its order, under the recipe's `classes:` key"
    )
