"""From the keys of a recipe to the reader of its data set: one small function a family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from clip_more.config import ConfigError
from clip_more.data.lists import names_from_folders, read_classes, read_list
from clip_more.data.paths import PhotoPolicy

if TYPE_CHECKING:
    import datasets

    from clip_more.config import TrainConfig

# Train and test as their makers split them; None where the data has no test split of its own.
Splits = tuple["datasets.Dataset", "datasets.Dataset | None"]
# What a train split is called where its owner chose, the likelier first.
TRAIN_NAMES = ("train", "trainval")


def read_splits(config: TrainConfig, policy: PhotoPolicy) -> Splits:
    """Train and test of the data set that a recipe names, with all of its classes and photos."""
    if config.dataset not in READERS:
        raise ConfigError(f"dataset {config.dataset!r} is none of {', '.join(READERS)}")
    return READERS[config.dataset](config, policy)


def file_below(config: TrainConfig, key: str) -> Path:
    """The file that a key names, relative to data_root unless absolute."""
    value = getattr(config, key)
    if not value:
        raise ConfigError(f"{key} is not set; dataset {config.dataset} needs it")
    return (Path(config.data_root).expanduser() if config.data_root else Path()) / Path(value).expanduser()


def _root(config: TrainConfig) -> Path:
    if not config.data_root:
        raise ConfigError("data_root is not set; say where the photos are with --data_root")
    root = Path(config.data_root).expanduser()
    if config.download:
        from clip_more.data.download import download

        download(config, root)
    if not root.is_dir():
        raise FileNotFoundError(f"data_root: there is no folder {config.data_root}")
    return root


def _voc(config: TrainConfig, policy: PhotoPolicy) -> Splits:
    from clip_more.data.voc import read_voc

    read = partial(read_voc, _root(config), source=config.annotations)
    split = config.train_split or "trainval"
    train = read(split, year=config.year, difficult=config.difficult, policy=_before_ids(config, policy))
    year, difficult = config.test_year or config.year, config.test_difficult or config.difficult
    test = read(config.test_split, year=year, difficult=difficult, policy=policy)
    return _listed(config, train, policy), test


def _coco(config: TrainConfig, policy: PhotoPolicy) -> Splits:
    from clip_more.data.coco import read_coco

    root = _root(config)
    train, test = (
        read_coco(root / "annotations" / f"instances_{split}.json", root / split, policy=its_policy)
        for split, its_policy in (
            (_named(config, "train2017"), _before_ids(config, policy)),
            (config.test_split, policy),
        )
    )
    return _listed(config, train, policy), test


def _before_ids(config: TrainConfig, policy: PhotoPolicy) -> PhotoPolicy:
    """Of a data set that an id file cuts down, only the photos it names need to be there."""
    return PhotoPolicy("allow") if config.img_ids else policy


def _listed(config: TrainConfig, train: datasets.Dataset, policy: PhotoPolicy) -> datasets.Dataset:
    if not config.img_ids:
        return train
    from clip_more.data.img_ids import keep_images, read_img_ids
    from clip_more.data.photos import undecoded

    file = file_below(config, "img_ids")
    train = keep_images(train, read_img_ids(file), str(file))
    if policy.missing == "allow":
        return train
    photos = [image["path"] for image in undecoded(train)["image"]]
    return train.select(policy.present(photos, list(train["image_id"]), _root(config), str(file)))


def _lists(config: TrainConfig, policy: PhotoPolicy) -> Splits:
    root, single = _root(config), config.task == "single_label"
    files = [file_below(config, key) for key in ("train_list", "test_list")]
    named_by_folders = single and not config.class_file
    names = names_from_folders(files[0]) if named_by_folders else read_classes(file_below(config, "class_file"))
    train, test = (read_list(file, names, root, single_label=single, policy=policy) for file in files)
    return train, test


def _nus_wide(config: TrainConfig, policy: PhotoPolicy) -> Splits:
    from clip_more.data.nus_wide import read_nus_wide

    root = _root(config)
    return read_nus_wide(root, "train", policy=policy), read_nus_wide(root, "test", policy=policy)


def _nus_wide_scene(config: TrainConfig, policy: PhotoPolicy) -> Splits:
    from clip_more.data.nus_wide_scene import read_nus_wide_scene

    root = _root(config)
    return read_nus_wide_scene(root, "train", policy=policy), read_nus_wide_scene(root, "test", policy=policy)


def _miml(config: TrainConfig, policy: PhotoPolicy) -> Splits:
    from clip_more.data.miml import read_miml

    return read_miml(_root(config), policy=policy), None


def _cifar(config: TrainConfig, policy: PhotoPolicy) -> Splits:
    from clip_more.data.cifar import read_cifar

    root, classes = _root(config), int(config.dataset.removeprefix("cifar"))
    return read_cifar(root, "train", classes=classes), read_cifar(root, "test", classes=classes)


def _folder(config: TrainConfig, policy: PhotoPolicy) -> Splits:
    from clip_more.data.folder import read_folder
    from clip_more.data.folder_scan import SPLIT_NAMES

    train, test = config.train_split or "", config.test_split
    config = replace(
        config,
        train_split=SPLIT_NAMES.get(train.casefold(), config.train_split),
        test_split=SPLIT_NAMES.get(test.casefold(), test),
    )
    splits = read_folder(
        _root(config), image_column=config.image_column, label_column=config.label_column, policy=policy
    )
    return _chosen(splits, config, str(config.data_root))


def _hub(config: TrainConfig, policy: PhotoPolicy) -> Splits:
    from clip_more.data.hub_dataset import read_hub

    splits = read_hub(
        config.hub_dataset or "",
        hub_config=config.hub_config,
        splits=[*([config.train_split] if config.train_split else TRAIN_NAMES), config.test_split],
        image_column=config.image_column,
        label_column=config.label_column,
        streaming=config.streaming,
        stream_limit=config.stream_limit,
    )
    return _chosen(splits, config, str(config.hub_dataset))


def _open_images(config: TrainConfig, policy: PhotoPolicy) -> Splits:
    from clip_more.data.open_images import read_open_images

    read = partial(read_open_images, _root(config), unlisted=config.unlisted, policy=policy)
    return read(config.train_split or "train"), read(config.test_split)


def _lvis(config: TrainConfig, policy: PhotoPolicy) -> Splits:
    from clip_more.data.lvis import read_lvis

    root = _root(config)
    train, test = (
        read_lvis(root / "annotations" / f"{split}.json", root, unlisted=config.unlisted, policy=policy)
        for split in (_named(config, "lvis_v1_train"), config.test_split)
    )
    return train, test


def _named(config: TrainConfig, example: str) -> str:
    if not config.train_split:
        raise ConfigError(f"train_split is not set; dataset {config.dataset} needs it, {example} for example")
    return config.train_split


# Keys that may differ from those that a set was prepared with: they say nothing about its photos, or narrow them later.
_FREE_OF_PREPARED = {"dataset", "data_root", "missing", "follow_links", "download", "classes", "task"}


def _prepared(config: TrainConfig, policy: PhotoPolicy) -> Splits:
    from clip_more.data.prepared import prepared_settings, read_prepared

    root = _root(config)
    settings, default = prepared_settings(root), type(config)()
    for key, then in settings.items():
        now = getattr(config, key, then)
        free = key in _FREE_OF_PREPARED or (key == "img_ids" and then is None)
        if not free and now not in (then, getattr(default, key, then)):
            raise ConfigError(
                f"{root} was prepared with {key}: {then}, but the recipe says {now}; prepare it again, "
                f"or leave {key} out"
            )
    train = read_prepared(root, "train")
    if settings.get("img_ids") is None and config.img_ids:
        train = _listed(config, train, PhotoPolicy("allow"))
    return train, read_prepared(root, "test")


def _digits(config: TrainConfig, policy: PhotoPolicy) -> Splits:
    from clip_more.data.digits import MAX_DIGITS, read_digits

    if config.train_split == "pretrain":
        return read_digits("pretrain"), read_digits("test")
    return _drawn_digits(config, most=MAX_DIGITS)


def _single_digits(config: TrainConfig, policy: PhotoPolicy) -> Splits:
    return _drawn_digits(config, most=1)


def _drawn_digits(config: TrainConfig, most: int) -> Splits:
    from clip_more.data.digits import read_digits

    if config.test_split not in ("test", "val"):
        raise ConfigError(f"{config.dataset} has no split {config.test_split!r}; set test_split to test or val")
    seed = config.data_seed if config.shuffle_classes else 0
    cut = config.data_seed if config.shuffle_digits else None
    train = read_digits(
        "train", seed=seed, imbalance=config.imbalance, most=most, shuffle=config.shuffle_classes, cut=cut
    )
    return train, read_digits(config.test_split, seed=seed, most=most, cut=cut)


def _chosen(splits: dict[str, datasets.Dataset], config: TrainConfig, where: str) -> Splits:
    """The splits that the recipe names, of data whose splits are its owner's choice."""
    train = config.train_split or next((name for name in TRAIN_NAMES if name in splits), "train")
    if train not in splits:
        raise ConfigError(f"{where} has no split {train!r}; set train_split to one of {', '.join(splits)}")
    if config.test_split not in splits and config.test_split != "test":
        raise ConfigError(f"{where} has no split {config.test_split!r}; test_split may be one of {', '.join(splits)}")
    return splits[train], splits.get(config.test_split)


READERS: dict[str, Callable[[TrainConfig, PhotoPolicy], Splits]] = {
    "folder": _folder,
    "lists": _lists,
    "voc": _voc,
    "coco": _coco,
    "nus_wide": _nus_wide,
    "nus_wide_scene": _nus_wide_scene,
    "miml": _miml,
    "cifar10": _cifar,
    "cifar100": _cifar,
    "open_images": _open_images,
    "lvis": _lvis,
    "hub": _hub,
    "prepared": _prepared,
    "digits_mlt": _digits,
    "digits_lt": _single_digits,
}
