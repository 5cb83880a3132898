"""From a recipe to its data: train, validation and test in the common form, and the frozen class profile."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from clip_more.config import ConfigError
from clip_more.data.form import class_names, keep_classes, multi_hot
from clip_more.data.lists import read_classes, read_list
from clip_more.data.profile import ClassProfile
from clip_more.data.split import stratified_split

if TYPE_CHECKING:
    import datasets

    from clip_more.config import DataConfig, TrainConfig


@dataclass(frozen=True)
class LongTailData:
    """What a run trains, selects and is judged on.

    Attributes:
        train: photos to train on; all of the train list where `val` is None.
        val: the part of the train list held out for selection, or None.
        test: photos to be judged on; nothing may be selected on them.
        profile: names, counts and groups of the *whole* train list, held-out part included.
    """

    train: datasets.Dataset
    val: datasets.Dataset | None
    test: datasets.Dataset
    profile: ClassProfile


def load_data(config: TrainConfig) -> LongTailData:
    """Read the data set that a recipe names.

    Groups come from the published train list, before a validation split is cut: one positive held out would move a
    class that stands on a bound.

    Raises:
        ConfigError: a key is missing or does not fit the data.
        FileNotFoundError: a folder, file or photo is absent.
        ValueError: a file cannot be understood, or a class has no train positive.
    """
    train, test = _read(config)
    kept = _kept_classes(config)
    if kept is not None:
        train, test = keep_classes(train, kept), keep_classes(test, kept)
    if (ours := class_names(train)) != (theirs := class_names(test)):
        differing = sorted(set(ours) ^ set(theirs))
        what = f"{', '.join(differing[:5])} in one of them only" if differing else "the same names in another order"
        raise ValueError(f"train has {len(ours)} classes and test {len(theirs)}: {what}; both need one class list")
    shared = set(train["image_id"]) & set(test["image_id"])
    if shared:
        example = min(shared)
        warnings.warn(f"{len(shared)} photos are in train and in test, {example} among them", stacklevel=2)
    profile = ClassProfile.from_dataset(train, config.head_min, config.tail_max)
    profile.check_positives()
    if config.refit or config.val_fraction == 0:
        return LongTailData(train, None, test, profile)
    rows, held_out = stratified_split(multi_hot(train)[0], config.val_fraction, config.seed)
    return LongTailData(train.select(rows), train.select(held_out), test, profile)


def _read(config: DataConfig) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Train and test of the data set, with all of its classes."""
    if config.dataset == "digits_mlt":
        from clip_more.data.digits import read_digits

        if config.train_split == "pretrain":
            return read_digits("pretrain"), read_digits("test")
        return read_digits("train", imbalance=config.imbalance), read_digits("test")
    root = _root(config)
    if config.dataset == "voc":
        from clip_more.data.voc import read_voc

        read = partial(read_voc, root, year=config.year, source=config.annotations, difficult=config.difficult)
        return read(config.train_split), read(config.test_split)
    if config.dataset == "coco":
        from clip_more.data.coco import read_coco

        files = [root / "annotations" / f"instances_{split}.json" for split in (config.train_split, config.test_split)]
        return read_coco(files[0], root / config.train_split), read_coco(files[1], root / config.test_split)
    if config.dataset == "lists":
        names = read_classes(_below(root, config, "class_file"))
        train, test = (read_list(_below(root, config, key), names, root) for key in ("train_list", "test_list"))
        return train, test
    raise ConfigError(f"dataset {config.dataset!r} is none of voc, coco, lists, digits_mlt")


def _root(config: DataConfig) -> Path:
    if not config.data_root:
        raise ConfigError(f"data_root is not set; say where the {config.dataset} folder is with --data_root")
    root = Path(config.data_root).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"data_root: there is no folder {config.data_root}")
    return root


def _below(root: Path, config: DataConfig, key: str) -> Path:
    """The file that a key names, relative to data_root unless absolute."""
    value = getattr(config, key)
    if not value:
        raise ConfigError(f"{key} is not set; dataset lists needs train_list, test_list and class_file")
    return root / Path(value).expanduser()


def _kept_classes(config: DataConfig) -> list[str] | None:
    if config.classes is None or isinstance(config.classes, list):
        return config.classes
    base = Path(config.data_root).expanduser() if config.data_root else Path()
    return read_classes(base / Path(config.classes).expanduser())
