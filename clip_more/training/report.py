"""The two ends of a run: what the untouched CLIP could do, and what came out."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clip_more.adapters import tail
from clip_more.config import TrainConfig
from clip_more.data.load import LongTailData
from clip_more.evaluation.chance import chance_map
from clip_more.evaluation.predict import predict_logits
from clip_more.evaluation.results import Protocol, Results, identify
from clip_more.hub import export_run, push_folder
from clip_more.models.heads import Classifier
from clip_more.training.average import RunningAverage
from clip_more.training.checkpoint import best_weights, load_weights
from clip_more.training.task import LongTailTask

if TYPE_CHECKING:
    from accelerate import Accelerator


def judge_untouched(
    config: TrainConfig, classifier: Classifier, data: LongTailData, accelerator: Accelerator, folder: Path
) -> np.ndarray:
    """AP per class (C,) of the CLIP as it was loaded, by prompts; taken once a run."""
    path = folder / "report" / "zero_shot.json"
    if path.exists():
        return Results.load(path).ap["zero-shot"]
    predictions = predict_logits(
        classifier, data.test, accelerator, batch_size=config.batch_size, workers=config.workers, label="zero-shot"
    )
    results = Results.from_scores(
        predictions.targets,
        {"zero-shot": predictions.scores},
        data.profile,
        known=predictions.known,
        protocol=Protocol(difficult=config.difficult),
        evaluated=_evaluated(config, data),
        checkpoint=identify(config.model),
    )
    if accelerator.is_main_process:
        results.save(path)
    accelerator.wait_for_everyone()
    return results.ap["zero-shot"]


def finish(
    config: TrainConfig,
    task: LongTailTask,
    classifier: Classifier,
    data: LongTailData,
    accelerator: Accelerator,
    folder: Path,
    before: np.ndarray,
    average: RunningAverage | None,
) -> None:
    """Judge the kept weights on test, export them, and write report/ last: its presence says that the run is done."""
    if config.keep == "best":
        load_weights(task, best_weights(folder))
    with average.applied(task) if average is not None else nullcontext():
        scores: dict[str, np.ndarray] = {}
        if task.discrepancy is not None:
            with tail(task, enabled=False):
                scores["general"] = _test_scores(config, classifier, data, accelerator, "general part").scores
        predictions = _test_scores(config, classifier, data, accelerator, "full model")
        scores["merged"] = predictions.scores
        if not accelerator.is_main_process:
            return
        results = Results.from_scores(
            predictions.targets,
            scores,
            data.profile,
            known=predictions.known,
            protocol=Protocol(difficult=config.difficult),
            evaluated=_evaluated(config, data),
            chance=chance_map(predictions.targets, data.profile, known=predictions.known),
        )
        results.ap = {"zero-shot": before, **results.ap}
        merged = export_run(folder, classifier, data.profile, config, results)
    results.checkpoint = identify(merged)
    data.profile.save(folder / "class_profile.json")
    _figures(folder, data, results)
    results.save(folder / "report" / "results.json")
    accelerator.print(f"\n{results.table()}\n\nmerged checkpoint: {merged}\nreport:            {folder / 'report'}")
    if config.push_to_hub:
        accelerator.print(f"uploaded to {push_folder(merged, config.push_to_hub)}")


def _test_scores(
    config: TrainConfig, classifier: Classifier, data: LongTailData, accelerator: Accelerator, label: str
) -> Any:
    return predict_logits(
        classifier, data.test, accelerator, batch_size=config.batch_size, workers=config.workers, label=label
    )


def _evaluated(config: TrainConfig, data: LongTailData) -> dict[str, Any]:
    return {"dataset": config.dataset, "split": config.test_list or config.test_split, "images": len(data.test)}


def _figures(folder: Path, data: LongTailData, results: Results) -> None:
    try:
        from clip_more.evaluation.plots import plot_ap_by_frequency, plot_training

        report = folder / "report"
        plot_ap_by_frequency(
            data.profile, results.ap["zero-shot"], results.ap["merged"], report / "ap_by_frequency.png"
        )
        plot_training(folder / "metrics.jsonl", report / "training.png")
    except ImportError as error:
        print(f"figures are left out: {error}")
