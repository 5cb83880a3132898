"""From a recipe to its data: train, validation and test in the common form, and the frozen class profile."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clip_more.config import ConfigError, DataConfig
from clip_more.data.form import class_names, keep_classes, label_pairs, multi_hot
from clip_more.data.lists import read_classes
from clip_more.data.paths import PhotoPolicy, Skipped
from clip_more.data.prepared import prepared_settings
from clip_more.data.profile import ClassProfile
from clip_more.data.read import file_below, read_splits
from clip_more.data.split import stratified_split

if TYPE_CHECKING:
    import datasets

    from clip_more.config import TrainConfig


@dataclass(frozen=True)
class LongTailData:
    """What a run trains, selects and is judged on.

    Attributes:
        train: photos to train on; all of the train list where `val` is None.
        val: the part of the train list held out for selection, or None.
        test: photos to be judged on; nothing may be selected on them.
        profile: names, counts and groups of the *whole* train list, held-out part included.
        skipped: photos that the lists name and `missing: skip` left out.
        drawn_test: ids of the test photos where the data has no test split of its own and they were drawn.
        facts: what was done to the data, as a result records it: every data key that is not at its default.
    """

    train: datasets.Dataset
    val: datasets.Dataset | None
    test: datasets.Dataset
    profile: ClassProfile
    skipped: list[Skipped] = field(default_factory=list)
    drawn_test: list[str] | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def load_data(config: TrainConfig, test_ids: Sequence[str] | None = None) -> LongTailData:
    """Read the data set that a recipe names, and hold out what the recipe selects on.

    Groups come from the whole train list, before a validation split is cut: one positive held out would move a class
    that stands on a bound.

    Args:
        config: the recipe.
        test_ids: `drawn_test` of an earlier reading: where the test part is drawn, these photos are it again, whatever
            classes or photos have come since.

    Raises:
        ConfigError: a key is missing or does not fit the data.
        FileNotFoundError: a folder, file or photo is absent.
        ValueError: a file cannot be understood, or a class has no train positive.
    """
    data = read_data(config, test_ids)
    data.profile.check_positives()
    if config.legacy_select_on_test:
        return replace(data, val=data.test)
    if config.refit or config.val_fraction == 0:
        return data
    rows, held_out = stratified_split(multi_hot(data.train)[0], config.val_fraction, config.seed)
    return replace(data, train=data.train.select(rows), val=data.train.select(held_out))


def read_data(config: TrainConfig, test_ids: Sequence[str] | None = None) -> LongTailData:
    """Read train and test as a recipe wants them, with nothing held out; a class may lack train positives.

    In this order: the files, a test part where the data has none (so that it does not depend on `classes`),
    `classes`, `long_tail`, `missing_labels`, `unlabelled`. Arguments as in `load_data`.
    """
    policy = PhotoPolicy(config.missing, config.follow_links)
    train, test = read_splits(config, policy)
    drawn = None
    if test is None:
        rows, held_out = _test_part(train, config, test_ids)
        train, test = train.select(rows), train.select(held_out)
        drawn = list(test["image_id"])
    if (kept := _kept_classes(config)) is not None:
        train, test = keep_classes(train, kept), keep_classes(test, kept)
    _same_classes(train, test)
    if config.task == "single_label":
        for part, which in ((train, "train"), (test, "test")):
            _check_single_label(part, which)
    before = len(train)
    if config.long_tail != "none":
        from clip_more.data.longtail import long_tail_rows

        train = train.select(
            long_tail_rows(
                multi_hot(train)[0],
                config.long_tail,
                imbalance=config.imbalance,
                seed=config.data_seed,
                largest=config.long_tail_largest,
            )
        )
    if config.missing_labels:
        from clip_more.data.partial import hide_labels

        negative = config.unlisted == "negative"
        train = hide_labels(train, config.missing_labels, config.data_seed, negative=negative)
    if config.unlabelled == "drop":
        test = test.select(np.unique(label_pairs(test)[0]))
        if not len(test):
            raise ConfigError("unlabelled: drop leaves no test photo, because none has a label")
    if shared := set(train["image_id"]) & set(test["image_id"]):
        warnings.warn(f"{len(shared)} photos are in train and in test, {min(shared)} among them", stacklevel=3)
    profile = ClassProfile.from_dataset(train, config.head_min, config.tail_max)
    if config.class_freq or config.class_split:
        _check_published(config, profile)
    facts = _facts(config, drawn is not None, len(policy.skipped))
    if config.long_tail != "none":
        facts["photos_before_long_tail"] = before
    return LongTailData(train, None, test, profile, policy.skipped, drawn, facts)


# Keys that a result tells elsewhere, or that say nothing about the photos and labels.
_TOLD_ELSEWHERE = {
    "dataset", "data_root", "test_split", "test_list", "classes", "head_min", "tail_max", "val_fraction", "refit",
    "missing", "follow_links", "download", "streaming",
}  # fmt: skip


def _facts(config: TrainConfig, test_was_drawn: bool, skipped: int) -> dict[str, Any]:
    facts: dict[str, Any] = {
        key.name: value
        for key in fields(DataConfig)
        if key.name not in _TOLD_ELSEWHERE and (value := getattr(config, key.name)) != key.default
    }
    if config.dataset == "prepared":
        settings, default = prepared_settings(str(config.data_root)), type(config)()
        facts["prepared"] = {
            key: value
            for key, value in settings.items()
            if key in ("dataset", "short_side", "store")
            or (key not in _TOLD_ELSEWHERE and value != getattr(default, key, None))
        }
    if test_was_drawn:
        facts["test"] = f"{config.test_fraction:g} of the photos, drawn by data_seed {config.data_seed}"
    if skipped:
        facts["photos_skipped"] = skipped
    return facts


def _test_part(
    dataset: datasets.Dataset, config: TrainConfig, test_ids: Sequence[str] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of train and of test, of data without a test split."""
    if test_ids is None:
        return stratified_split(multi_hot(dataset)[0], config.test_fraction, config.data_seed)
    wanted, row_of = set(test_ids), {name: row for row, name in enumerate(dataset["image_id"])}
    gone = sorted(wanted - row_of.keys())
    if gone:
        raise ValueError(
            f"{len(gone)} of the {len(wanted)} photos that this run holds out as test are no longer in the data, "
            f"{gone[0]} among them; put them back, or train again with --run NAME"
        )
    in_test = np.zeros(len(dataset), dtype=bool)
    in_test[[row_of[name] for name in wanted]] = True
    return np.flatnonzero(~in_test), np.flatnonzero(in_test)


def _kept_classes(config: TrainConfig) -> list[str] | None:
    if config.classes is None or isinstance(config.classes, list):
        return config.classes
    if config.dataset == "prepared" and prepared_settings(str(config.data_root)).get("classes") == config.classes:
        return None  # applied already, and the file stayed where the photos came from
    return read_classes(file_below(config, "classes"))


def _same_classes(train: datasets.Dataset, test: datasets.Dataset) -> None:
    if (ours := class_names(train)) != (theirs := class_names(test)):
        differing = sorted(set(ours) ^ set(theirs))
        what = f"{', '.join(differing[:5])} in one of them only" if differing else "the same names in another order"
        raise ValueError(f"train has {len(ours)} classes and test {len(theirs)}: {what}; both need one class list")


def _check_single_label(dataset: datasets.Dataset, which: str) -> None:
    labels = np.bincount(label_pairs(dataset)[0], minlength=len(dataset))
    if wrong := int((labels != 1).sum()):
        row = int(np.flatnonzero(labels != 1)[0])
        raise ValueError(
            f"task: single_label, but {wrong} of {len(dataset)} {which} photos do not have exactly one label; "
            f"{dataset[row : row + 1]['image_id'][0]} has {labels[row]}"
        )


def _check_published(config: TrainConfig, profile: ClassProfile) -> None:
    from clip_more.data.frequency_files import check_class_freq, check_class_split

    if config.class_freq:
        check_class_freq(Path(file_below(config, "class_freq")), profile)
    if config.class_split:
        check_class_split(Path(file_below(config, "class_split")), profile)
