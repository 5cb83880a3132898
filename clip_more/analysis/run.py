"""The analysis of one finished run: its files in, `measures_<split>.json` and `page_<split>.png` out."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clip_more.analysis.course import read_course
from clip_more.analysis.diagnosis import UNTOUCHED, Change, diagnose, moves_general_part
from clip_more.analysis.forgetting import forgetting_by_group, read_correct
from clip_more.analysis.head_arrays import head_arrays
from clip_more.analysis.measures import feature_measures, layer_measures, mechanism_measures, plain
from clip_more.analysis.mechanism import mechanism
from clip_more.analysis.page import draw_page
from clip_more.analysis.tail_layers import tail_layers
from clip_more.config import ConfigError, TrainConfig
from clip_more.data.form import multi_hot
from clip_more.data.load import LongTailData, load_data
from clip_more.data.profile import GROUPS
from clip_more.evaluation.average_precision import to_scores
from clip_more.evaluation.bootstrap import paired_difference
from clip_more.evaluation.judge import general_classifier, test_logits
from clip_more.evaluation.predict import raw_features
from clip_more.evaluation.run_events import read_events
from clip_more.evaluation.scores import Scores, load_scores
from clip_more.evaluation.single_label import SHOTS, paired_top1, single_labels
from clip_more.files import written_aside
from clip_more.models.classifier import AnyClassifier, load_classifier
from clip_more.training.forgetting import FOLDER
from clip_more.training.run_folder import read_config, read_test_ids

if TYPE_CHECKING:
    from accelerate import Accelerator

FORMAT = "clip_more analysis 1"
DRAWS = 500


def analyse_run(
    folder: str | os.PathLike[str],
    accelerator: Accelerator,
    *,
    config: TrainConfig | None = None,
    out: str | os.PathLike[str] | None = None,
    split: str = "train",
    baseline: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Measure a finished run, write its measures and its page.

    Features are those of the photos of `split`, without augmentation; what rests on logits (the mechanism test, the
    changes behind the diagnosis) is always that of the test photos.

    Args:
        folder: `runs/<name>`.
        accelerator: Splits the photos over its processes.
        config: The run's recipe, perhaps with another batch size or data folder; read from the run without it.
        out: Folder of the two files; `analysis/` in the run without it.
        split: `train` or `test`.
        baseline: Another run on the same test photos, such as the same recipe without a tail, to compare groups with.

    Returns:
        What the JSON holds.

    Raises:
        ConfigError: `folder` is no run, or no finished one.
        ValueError: The baseline was judged on other photos, or a file is damaged.
    """
    folder = Path(folder)
    if split not in ("train", "test"):
        raise ConfigError(f"split is {split!r}; choose train or test")
    config = config or read_config(folder)
    if not (folder / "merged").is_dir():
        raise ConfigError(f"{folder} has no merged/, so it is not finished; train it to its end first")
    data = load_data(config, read_test_ids(folder))
    classifier, names = load_classifier(folder / "merged", config.geometry)
    if names != list(data.profile.names):
        raise ConfigError(f"{folder / 'merged'} knows other classes than the data now; has data_root changed?")
    models: dict[str, AnyClassifier] = {"merged": classifier}
    if (folder / "general").is_dir():
        models["general"] = general_classifier(folder / "general", classifier, names, config)
    found: dict[str, Any] = {
        "format": FORMAT,
        "run": folder.resolve().name,
        "split": split,
        "task": config.task,
        "tuning": config.tuning,
        "profile": data.profile.to_dict(),
        "models": {name: _features(model, config, data, accelerator, split, name) for name, model in models.items()},
    }
    scores = _scores(folder, models, config, data, accelerator)
    found |= _of_logits(folder, config, data, scores, baseline)
    if (folder / "tail").is_dir():
        found["tail_layers"] = layer_measures(tail_layers(folder / "tail", folder / "general"))
    correct = read_correct(folder / FOLDER)
    if correct is not None:
        found["forgetting"] = plain(forgetting_by_group(correct, multi_hot(data.train)[0], data.profile))
    if accelerator.is_main_process:
        _write(found, Path(out) if out is not None else folder / "analysis", split)
    return found


def _features(
    classifier: AnyClassifier, config: TrainConfig, data: LongTailData, accelerator: Accelerator, split: str, name: str
) -> dict[str, Any]:
    classifier.to(accelerator.device)
    got = raw_features(
        classifier.encoder,
        data.train if split == "train" else data.test,
        accelerator,
        batch_size=config.batch_size,
        workers=config.workers,
        worker_timeout=config.worker_timeout,
        label=f"features, {name}",
    )
    head = head_arrays(classifier)
    measured = feature_measures(
        got.scores,
        got.targets,
        data.profile,
        known=None if got.known.all() else got.known,
        inputs=head.inputs(got.scores),
        weight=head.weight,
        bias=head.bias,
        single_label=config.task == "single_label",
    )
    return measured | {"inputs": head.name, "row_norms_matter": head.row_norms_matter}


def _scores(
    folder: Path, models: dict[str, AnyClassifier], config: TrainConfig, data: LongTailData, accelerator: Accelerator
) -> Scores:
    """Test logits of the run's report; taken again where it kept none (`save_scores: false`)."""
    path = folder / "report" / "scores.safetensors"
    if path.is_file():
        scores = load_scores(path)
        if scores.image_ids == list(data.test["image_id"]):
            return scores
    rows = {name: test_logits(model, config, data, accelerator, name) for name, model in reversed(models.items())}
    known = rows["merged"].known
    return Scores(
        {name: row.scores for name, row in rows.items()},
        rows["merged"].targets,
        None if known.all() else known,
        list(data.test["image_id"]),
    )


def _of_logits(
    folder: Path, config: TrainConfig, data: LongTailData, scores: Scores, baseline: str | os.PathLike[str] | None
) -> dict[str, Any]:
    """Mechanism, changes by group, course and diagnosis."""
    single = config.task == "single_label"
    found: dict[str, Any] = {}
    relative = None
    if "general" in scores.rows:
        discrepancy, contrasts = mechanism(
            scores.rows["merged"],
            scores.rows["general"],
            scores.targets,
            data.profile,
            known=scores.known,
            single_label=single,
            ap_form=config.ap,
            draws=DRAWS,
        )
        found["mechanism"] = mechanism_measures(
            discrepancy, contrasts, single_label=single, moved=moves_general_part(config.to_dict())
        )
        relative = discrepancy.relative
    others = {name: scores.rows[name] for name in ("general", UNTOUCHED) if name in scores.rows}
    if baseline is not None:
        others[Path(baseline).resolve().name] = _baseline(Path(baseline), scores)
    changes = [_change(name, logits, scores, config, data) for name, logits in others.items()]
    metrics = folder / "metrics.jsonl"
    course = read_course(read_events(metrics)) if metrics.is_file() else None
    found["changes"] = plain([asdict(change) for change in changes])
    found["course"] = None if course is None else plain(asdict(course))
    found["diagnosis"] = [asdict(finding) for finding in diagnose(config.to_dict(), changes, course, relative)]
    return found


def _change(name: str, logits: np.ndarray, scores: Scores, config: TrainConfig, data: LongTailData) -> Change:
    """The merged model less another one, by group, with intervals over resamples of the test photos."""
    both = logits, scores.rows["merged"]
    if config.task == "single_label":
        labels = single_labels(scores.targets, data.profile, scores.known)
        drawn = paired_top1(labels, *both, data.profile, draws=DRAWS)
        drawn = {group: drawn[shot] for group, shot in SHOTS.items()}
    else:
        a, b = (to_scores(array, config.score) for array in both)
        drawn = paired_difference(scores.targets, a, b, data.profile, known=scores.known, draws=DRAWS, form=config.ap)
    there = {group: own for group in GROUPS if (own := drawn[group]) is not None}
    return Change(
        name,
        {group: own["difference"] for group, own in there.items()},
        {group: (own["low"], own["high"]) for group, own in there.items()},
    )


def _baseline(folder: Path, scores: Scores) -> np.ndarray:
    """Test logits of another run's merged model, of the same photos."""
    path = folder / "report" / "scores.safetensors"
    other = load_scores(path)
    if "merged" not in other.rows or other.image_ids != scores.image_ids or other.targets.shape != scores.targets.shape:
        raise ValueError(
            f"{path} is of other test photos, other classes or no finished run, so runs cannot be compared"
        )
    return other.rows["merged"]


def _write(found: dict[str, Any], out: Path, split: str) -> None:
    text = json.dumps(found, indent=1, allow_nan=False, ensure_ascii=False)
    with written_aside(out / f"measures_{split}.json") as aside:
        aside.write_text(text + "\n", encoding="utf-8")
    draw_page(found, out / f"page_{split}.png")
