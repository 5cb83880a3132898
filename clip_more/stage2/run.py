"""The second stage of a finished run: features once, then a method, its results and its figure."""

from __future__ import annotations

import json
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_more.config import LOSSES_OF_ONE_LABEL, ConfigError, TrainConfig
from clip_more.data.form import digest
from clip_more.data.load import LongTailData, load_data
from clip_more.data.profile import GROUPS
from clip_more.data.split import stratified_split
from clip_more.evaluation.predict import Predictions, raw_features
from clip_more.files import filled_aside
from clip_more.models.classifier import AnyClassifier, load_classifier
from clip_more.recipe import from_dict
from clip_more.stage2.cache import cached_features
from clip_more.stage2.cached import Cached
from clip_more.stage2.choose import Stage
from clip_more.stage2.folder import read_selection, weight_hashes
from clip_more.stage2.linear_form import stage_one_head
from clip_more.stage2.methods import check_method, corrected_already
from clip_more.stage2.options import Stage2Options
from clip_more.stage2.report import write_method
from clip_more.training.processes import make_accelerator
from clip_more.training.run_folder import read_config, read_test_ids

if TYPE_CHECKING:
    import datasets

# Of train, where a run held nothing out.
VAL_FRACTION = 0.2


def stage2(
    folder: str | Path, method: str, options: Stage2Options | None = None, overrides: dict[str, Any] | None = None
) -> Path:
    """Make, judge and write one classifier of the second stage; the encoder stays bit for bit as it is.

    A method that is there already, with the same options and of the same weights and photos, is left as it is.

    Args:
        folder: Of a finished run.
        method: A name of `METHODS`.
        options: Those that the method takes.
        overrides: Keys of the recipe that say where and how photos are read (`data_root`, `workers`...).

    Returns:
        `runs/<name>/stage2/<method>/`.

    Raises:
        ValueError: The folder is no finished run, or the method cannot be used on it; the text says why.
        RuntimeError: The weights of the run changed meanwhile.
    """
    folder, options = Path(folder), options or Stage2Options()
    chosen = check_method(method, options)
    config = _recipe(folder, overrides or {})
    merged, out = folder / "merged", folder / "stage2" / method
    before = weight_hashes(merged)
    accelerator = make_accelerator(config)
    if accelerator.num_processes > 1:
        raise ConfigError("a second stage takes seconds on one process; start it without a launcher")
    data = load_data(config, read_test_ids(folder))
    classifier, names = load_classifier(merged, config.geometry)
    if names != list(data.profile.names):
        raise ValueError(f"{merged} has other classes than the data set that {folder / 'config.yaml'} names")
    parts = {"train": data.train, "test": data.test}
    if data.val is not None and not config.legacy_select_on_test:
        parts["val"] = data.val
    of = _depends_on(before, classifier, config, parts)
    asked = {name: value for name, value in asdict(options).items() if name in chosen.takes}
    if _is_there(out, of, asked):
        return out
    if why := corrected_already(method, config):
        warnings.warn(why, stacklevel=2)

    start = time.perf_counter()
    classifier.to(accelerator.device)

    def take(photos: datasets.Dataset, label: str) -> Predictions:
        return raw_features(
            classifier.encoder,
            photos,
            accelerator,
            batch_size=config.batch_size,
            workers=config.workers,
            label=label,
            worker_timeout=config.worker_timeout,
        )

    features, why_taken = cached_features(folder / "stage2" / "features.safetensors", parts, of, take)
    seconds = {"features": time.perf_counter() - start}
    photos = sum(len(part) for part in parts.values())
    if why_taken is None:
        print(f"features of {photos:,} photos: from {folder / 'stage2' / 'features.safetensors'}")
    else:
        print(f"features of {photos:,} photos: taken in {seconds['features']:.1f} s ({why_taken})")
    open_choice = any(getattr(options, name) is None for name in chosen.chooses)
    stage, selected_on = _stage(classifier, features, config, data, str(accelerator.device), open_choice)
    start = time.perf_counter()
    head, selection = chosen.run(stage, options)
    seconds["method"] = time.perf_counter() - start
    record = {
        **asdict(selection),
        "selection": selected_on if len(selection.candidates) > 1 else "given",
        "fewest_of_a_class": 0 if stage.val is None else int(stage.val.counts().min()),
        "options": asked,
        "of": of,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
    }
    with filled_aside(out) as aside:
        write_method(aside, merged, config, data, classifier, stage.head, head, features, selection, record)
    if weight_hashes(merged) != before:
        raise RuntimeError(f"the weights in {merged} changed while the second stage ran; {out} may be of either")
    return out


def _recipe(folder: Path, overrides: dict[str, Any]) -> TrainConfig:
    """The recipe of a finished run, on one process, one view of a photo."""
    if not (folder / "config.yaml").is_file():
        raise ValueError(f"{folder} is no run (it has no config.yaml); name a folder such as runs/<name>")
    if not (folder / "report" / "results.json").is_file() or not (folder / "merged").is_dir():
        raise ValueError(
            f"{folder} is not finished: it has no merged checkpoint and report yet; train it to its end first"
        )
    of_training: dict[str, Any] = {"processes": None, "distribution": None, "trackers": [], "views": "one"}
    config = read_config(folder)
    if config.views != "one":
        print(f"note: the run was judged on views: {config.views}; features are of one view, so are all rows here")
    return from_dict(config.to_dict() | of_training | overrides, origin=str(folder / "config.yaml"))


def _depends_on(
    hashes: dict[str, str], classifier: AnyClassifier, config: TrainConfig, parts: dict[str, datasets.Dataset]
) -> dict[str, str]:
    """What cached features, and the methods on them, are of."""
    encoder = classifier.encoder
    how = {
        "geometry": encoder.geometry,
        "interpolation": encoder.interpolation,
        "image_size": encoder.image_size,
        "precision": config.mixed_precision,
    }
    return {
        "weights": json.dumps(hashes),
        "preprocessing": json.dumps(how),
        **{f"{name} photos": digest(photos) for name, photos in parts.items()},
    }


def _is_there(out: Path, of: dict[str, str], asked: dict[str, Any]) -> bool:
    if not out.exists():
        return False
    there = read_selection(out)
    if there.get("of") == of and there.get("options") == asked:
        print(f"{out} is there already, with these options and of these weights; delete it to make it again")
        return True
    changed = "other options" if there.get("of") == of else "other weights, photos or version"
    print(f"note: {out} is of {changed}; it is made again")
    return False


def _stage(
    classifier: AnyClassifier,
    features: dict[str, Cached],
    config: TrainConfig,
    data: LongTailData,
    device: str,
    open_choice: bool,
) -> tuple[Stage, str]:
    """What a method starts from, and what its values are chosen on: `held_out` or `train_part`."""
    train, val, selected_on = features["train"], features.get("val"), "held_out"
    refit = False
    if val is None and open_choice:
        selected_on, refit = "train_part", True  # stage 1 learnt from all of them, too
        rows, held_out = stratified_split(train.targets.numpy(), VAL_FRACTION, config.seed)
        warnings.warn(
            f"the run held no photos out (val_fraction: 0, refit, or legacy_select_on_test), so values are chosen on "
            f"{len(held_out)} of its train photos, which the encoder was trained on: they look better to it than new "
            "photos, and the choice may lean to too little correction. Train with val_fraction: 0.2 for a clean choice",
            stacklevel=3,
        )
        train, val = train.take(rows), train.take(held_out)
    stage = Stage(
        head=stage_one_head(classifier).to("cpu"),
        train=train,
        val=val,
        single_label=config.task == "single_label",
        sigmoids=config.loss not in LOSSES_OF_ONE_LABEL,
        groups={group: data.profile.indices(group) for group in GROUPS},
        seed=config.seed,
        refit=refit,
        device=device,
    )
    return stage, selected_on
