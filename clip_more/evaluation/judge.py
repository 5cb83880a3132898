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
from clip_more.models.classifier import Classifier, load_classifier
from clip_more.models.clip import Clip, load_clip
from clip_more.models.heads import PromptHead
from clip_more.models.multilabel import read_multilabel
from clip_more.models.prompts import class_prompts, load_templates

if TYPE_CHECKING:
    from accelerate import Accelerator


def judge_checkpoint(
    folder: str | Path, config: TrainConfig, data: LongTailData, accelerator: Accelerator
) -> tuple[Results, Predictions]:
    """Results of an exported classifier on a recipe's test photos.

    Args:
        folder: A folder with `multilabel.json`, such as a run's `merged/`.
        config: Names the protocol, batch size and workers.
        data: Its test photos are judged; groups come from its profile.
        accelerator: Splits the photos over its processes.

    Raises:
        FileNotFoundError: If the folder is no exported classifier.
        ValueError: If its classes are not those of the data set.
    """
    classifier, names = load_classifier(folder, config.geometry)
    _same_classes(names, data, folder)
    content, row = read_multilabel(folder), Path(folder).name
    thresholds = content.get("thresholds")
    predictions = _logits(classifier, config, data, accelerator, "evaluating")
    results = results_of(
        config,
        data,
        classifier.clip,
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
    """The untouched CLIP by prompts, the general part alone, and the merged model, each by group.

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
    content = read_multilabel(folder / "merged")
    _same_classes(names, data, folder / "merged")
    prompts = class_prompts(names, load_templates(config.templates), config.class_prompts)
    sources = {"zero-shot": config.model}
    if (folder / "general").is_dir():
        sources["general"] = str(folder / "general")
    scores: dict[str, np.ndarray] = {}
    start = ""
    for row, source in sources.items():
        clip = load_clip(source, image_size=config.image_size, geometry=config.geometry, seed=config.seed)
        start = start or clip.source
        scale = float(clip.model.logit_scale.detach().exp())
        classifier = Classifier(clip, PromptHead(clip, prompts, scale=scale)).eval()
        if row == "general":
            classifier.head.load_state_dict(merged.head.state_dict())
        scores[row] = _logits(classifier, config, data, accelerator, row).scores
    predictions = _logits(merged, config, data, accelerator, "merged")
    scores["merged"] = predictions.scores
    fitted = None if content.get("thresholds") is None else {"merged": np.asarray(content["thresholds"])}
    results = results_of(config, data, merged.clip, predictions, scores, start, fitted)
    results.protocol = _selected_as(content, results.protocol)
    results.chance = chance_map(predictions.targets, data.profile, known=predictions.known)
    results.checkpoint = identify(folder / "merged")
    return results


def _selected_as(multilabel: dict[str, Any], protocol: Protocol) -> Protocol:
    """The protocol with what the checkpoint itself says it was chosen on, whatever the recipe at hand says."""
    return replace(protocol, selection=multilabel.get("selection", "unknown"))


def protocol_of(config: TrainConfig, clip: Clip) -> Protocol:
    """The protocol that a recipe declares; geometry and interpolation are those of the CLIP."""
    selected = "legacy_test" if config.legacy_select_on_test else "held_out"
    return Protocol(
        score=config.score,
        ap=config.ap,
        difficult=_difficult(config),
        unlabelled=config.unlabelled,
        geometry=clip.geometry,
        interpolation=clip.interpolation,
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
    clip: Clip,
    predictions: Predictions,
    scores: dict[str, np.ndarray],
    start: str,
    thresholds: Mapping[str, np.ndarray] | None = None,
) -> Results:
    """Results on the test photos of a recipe, with the protocol it declares.

    Args:
        config: The recipe.
        data: Its test photos and class profile.
        clip: Says how photos were brought into a square.
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
    stored = data.facts.get("prepared", {}).get("short_side", clip.image_size)
    if stored < clip.image_size:
        warnings.warn(
            f"the prepared photos have a shorter side of {stored} pixels, and the model wants {clip.image_size}: they "
            "are enlarged; prepare them again with a larger --short_side",
            stacklevel=2,
        )
    return Results.from_scores(
        predictions.targets,
        scores,
        data.profile,
        known=predictions.known,
        protocol=protocol_of(config, clip),
        thresholds=thresholds,
        bootstrap=config.bootstrap,
        single_label=config.task == "single_label",
        evaluated=evaluated,
    )


def _logits(
    classifier: Classifier, config: TrainConfig, data: LongTailData, accelerator: Accelerator, label: str
) -> Predictions:
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
