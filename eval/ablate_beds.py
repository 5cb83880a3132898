"""Test beds of the sweeps: the photos of each seed, the CLIP all arms start from, and the config of a run.

Seeds are paired: seed s gives every arm the same photos, order and first weights, and which classes are rare is drawn
anew between seeds. No arm of a sweep that is judged on validation opens a test photo.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ablate_settings import settings_of
from ablate_sweep import Sweep, folder_name
from ablate_voc import TEST_LIST, TRAIN_LIST, VALIDATION, draw_voc
from clip_more.config import ConfigError, DataConfig, TrainConfig
from clip_more.lock import held, is_held
from clip_more.recipe import load_config
from matrix_rows import RECIPES, SHORT_SIDE

# Alike in all runs. A run lasts a minute or four: it is saved when it is stopped, not between.
SHARED = {"bootstrap": 0, "keep_checkpoints": 1, "workers": 0, "checkpoint_every": 10**6}


@dataclass(frozen=True)
class Bed:
    """A data set, and what all runs on it share.

    Attributes:
        values: Keys of every arm, which a sweep may set otherwise.
        seconds: About what a pass over train takes on a free core, without and with a second pass for L_MORE.
        splits: `judged_on` to the name of the test split.
        voc: Whether it is the folder voc2012_lt_tiny, with a CLIP that is pretrained first.
    """

    values: dict[str, Any]
    seconds: tuple[float, float]
    splits: dict[str, str]
    voc: bool = False


_DIGITS = {"test": "test", "validation": "val"}
BEDS = {
    "digits_mlt": Bed({"shuffle_classes": True}, (1.5, 2.9), _DIGITS),
    "digits_lt": Bed({"shuffle_classes": True}, (2.6, 5.0), _DIGITS),
    "voc2012_lt_tiny": Bed(
        {"image_size": 64}, (5.7, 9.9), {"test": "test_balanced", "validation": "validation"}, voc=True
    ),
}
LIST_KEYS = ("train_list", "test_list", "class_file")
START_RECIPE = "voc2012_lt_tiny/pretrain.yaml"
START: dict[str, Any] = {"objective": "sigmoid", "steps": 1600, "batch_size": 32, "lr": 5e-4}


@dataclass(frozen=True)
class Arm:
    """One run to be.

    Attributes:
        config: Of the run; its photos need not be there yet.
        values: Keys in which it differs from the sweep's recipe.
        settings: `ablate_settings.settings_of` its config.
        photos: The config that names its photos, to prepare them into `config.data_root`.
        seconds: About what it takes.
    """

    config: TrainConfig
    values: dict[str, Any]
    settings: str
    photos: TrainConfig
    seconds: float


def make_arm(sweep: Sweep, name: str, seed: int, out: Path, data_root: str | None = None) -> Arm:
    """The checked config of an arm's run with a seed.

    Args:
        sweep: The sweep.
        name: Of the arm.
        seed: Of data, order and weights.
        out: Folder of all runs.
        data_root: Folder that holds voc2012_lt_tiny/; that of CLIP_MORE_TEST_DATA without it.

    Raises:
        ConfigError: Naming sweep and arm.
    """
    if sweep.bed not in BEDS:
        raise ConfigError(f"{sweep.path}: bed is {sweep.bed!r}; choose one of {', '.join(BEDS)}")
    bed, keys = BEDS[sweep.bed], sweep.arms[name]
    given = bed.values | {"test_split": bed.splits[sweep.judged_on], "data_seed": 0 if bed.voc else seed}
    if bed.voc:
        given |= _voc_lists(out, data_root, sweep.judged_on)
    base = _load(sweep, None, given)
    if factor := sweep.times.get(name):
        longer = {"epochs": factor * keys.get("epochs", base.epochs)}
        if steps := keys.get("max_steps", base.max_steps):
            longer["max_steps"] = round(factor * steps)
        keys = keys | longer
    photos = _load(sweep, name, given | keys)
    if photos.dataset != (sweep.bed if not bed.voc else "lists"):
        raise ConfigError(f"{sweep.path}: {sweep.recipe} is of {photos.dataset}, not of bed {sweep.bed}")
    run = {
        **SHARED,
        **given,
        **({"model": str(start_folder(out)), "img_ids": _voc_ids(out, sweep.judged_on, seed)} if bed.voc else {}),
        **(_fewer_photos(photos) if bed.voc and sweep.judged_on == "validation" else {}),
        **keys,
        **dict.fromkeys(LIST_KEYS),
        "dataset": "prepared",
        "data_root": str(_photos_folder(sweep, photos, out)),
        "dataset_name": sweep.bed,
        "method": name,
        "output_dir": str(out / sweep.name),
        "run": f"{folder_name(name)}-s{seed}",
        "seed": seed,
    }
    config = _load(sweep, name, run)
    values = {key: value for key in keys if (value := getattr(photos, key)) != getattr(base, key)}
    shared = replace(config, model="common start") if config.model == str(start_folder(out)) else config
    seconds = bed.seconds[config.tuning == "more"] * config.epochs
    return Arm(config, values, settings_of(shared), photos, seconds)


def _fewer_photos(photos: TrainConfig) -> dict[str, Any]:
    """Bounds of the groups while training on what is not held out.

    Groups to judge by are those of the whole subset; what a run does by group (`group_weights`) goes by
    the counts of its own photos, a quarter fewer, and so must the bounds for both to be the same classes.
    """
    return {key: round((1 - VALIDATION) * getattr(photos, key)) for key in ("head_min", "tail_max")}


def _load(sweep: Sweep, arm: str | None, values: dict[str, Any]) -> TrainConfig:
    try:
        return load_config(RECIPES / sweep.recipe, values)
    except ConfigError as error:
        reason = str(error).removeprefix("command line: ").removeprefix(f"{RECIPES / sweep.recipe}: ")
        raise ConfigError(f"{sweep.path}{f', arm {arm!r}' if arm else ''}: {reason}") from None


def _photos_folder(sweep: Sweep, photos: TrainConfig, out: Path) -> Path:
    """Where the photos of a setting are: one folder for all arms that agree in them."""
    from clip_more.data.prepare import IRRELEVANT

    keys = {key.name for key in fields(DataConfig)} - IRRELEVANT - {"data_root", "train_list", "test_list"}
    setting = json.dumps({key: getattr(photos, key) for key in sorted(keys)}, default=str)
    digest = hashlib.sha256(setting.encode()).hexdigest()[:8]
    seed = "" if BEDS[sweep.bed].voc else f"-s{photos.data_seed}"
    size = "" if _short_side(photos) == SHORT_SIDE else f"-{photos.image_size}"
    return out / "data" / f"{sweep.bed}-{sweep.judged_on}{seed}-{digest}{size}"


def _short_side(photos: TrainConfig) -> int:
    return max(SHORT_SIDE, photos.image_size or 0)


def _voc_folder(out: Path) -> Path:
    return out / "data" / "voc2012_lt_tiny"


def _voc_lists(out: Path, data_root: str | None, judged_on: str) -> dict[str, Any]:
    root = data_root or os.environ.get("CLIP_MORE_TEST_DATA") or "."
    train, test = TRAIN_LIST, TEST_LIST
    if judged_on == "validation":
        train, test = (str((_voc_folder(out) / name).resolve()) for name in ("train.txt", "validation.txt"))
    return {
        "dataset": "lists",
        "data_root": str(Path(root) / "voc2012_lt_tiny"),
        "train_list": train,
        "test_list": test,
        "class_file": "voc_labels.txt",
        "train_split": None,
    }


def _voc_ids(out: Path, judged_on: str, seed: int) -> str:
    """As a whole path: a relative one would be looked for in the photos' folder."""
    return str((_voc_folder(out) / f"{judged_on}-s{seed}.txt").resolve())


def start_folder(out: Path) -> Path:
    """Where the small CLIP is that all runs on photos start from."""
    return out / "start" / "voc2012_lt_tiny"


def prepare_arms(arms: Sequence[Arm], out: Path) -> None:
    """Draw or decode the photos of these runs, and pretrain what they start from: each once."""
    from clip_more.data.prepare import prepare

    lock = out / "data" / ".lock"
    while is_held(lock):
        time.sleep(1)
    with held(lock, lambda holder: f"{out / 'data'} is being written by {holder}; start again when it is done"):
        voc = [arm for arm in arms if arm.photos.dataset == "lists"]
        if voc:
            draw_voc(voc[0].photos, _voc_folder(out), {arm.config.seed for arm in voc})
        for folder, arm in {str(arm.config.data_root): arm for arm in arms}.items():
            _say(folder, prepare(arm.photos, folder, short_side=_short_side(arm.photos)))
        if any(arm.config.model == str(start_folder(out)) for arm in voc):
            _pretrain(voc[0].photos, out)


def _say(folder: str, report: Any) -> None:
    if not report.was_complete:
        print(f"{Path(folder).name}: {report.text().splitlines()[0]}", flush=True)


def _pretrain(photos: TrainConfig, out: Path) -> None:
    """The CLIP that arms on photos start from; it never sees a photo of validation or test."""
    from clip_more.data.prepare import prepare
    from clip_more.training.pretrain import pretrain_from_recipe

    folder = start_folder(out)
    if (folder / "config.json").is_file():
        return
    root = str(Path(str(photos.data_root)).parent)
    listed = load_config(RECIPES / START_RECIPE, _voc_lists(out, root, "validation") | {"test_split": "validation"})
    data = out / "data" / "voc2012_lt_tiny-start"
    _say(str(data), prepare(listed, data, short_side=SHORT_SIDE))
    no_lists = dict.fromkeys(LIST_KEYS)
    config = replace(listed, **no_lists, dataset="prepared", data_root=str(data), workers=0)  # type: ignore[arg-type]
    pretrain_from_recipe(config, folder, **START)


def groups_file(sweep: Sweep, seed: int, out: Path) -> Path | None:
    """The class profile that head, medium and tail come from, where it is not that of the run's train photos."""
    return _voc_folder(out) / f"s{seed}.json" if BEDS[sweep.bed].voc else None
