"""`clip-more prepare`: the photos of a recipe decoded, checked and made smaller once, as Arrow data sets.

    <folder>/train/, test/   data sets in the common form, for `datasets.load_from_disk`
    <folder>/prepared.json   settings, counts, versions, sizes; its presence says that all is written
    <folder>/skipped.csv     split, image_id and cause of every listed photo that is not in them
    <folder>/.progress/      while it is being written: what is finished

Keys that only choose among photos and labels (`long_tail`, `missing_labels`, `unlabelled`), and checks of what is
chosen, are left to the runs that use the folder: applied here, they would be applied twice.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_more import __version__
from clip_more.config import ConfigError, DataConfig
from clip_more.data.form import class_names, label_pairs
from clip_more.data.load import LongTailData, read_data
from clip_more.data.prepared import SPLITS, PreparedReport, megabytes, read_prepared, read_record, report_of
from clip_more.data.shards import Encoder, Shard, encoded_photos, finished_shard, shard_rows, write_shard
from clip_more.files import written_aside

if TYPE_CHECKING:
    import datasets

    from clip_more.config import TrainConfig

__all__ = ["PreparedReport", "prepare", "read_prepared"]

STORES = ("raw", "jpeg")
# Keys that change no row of the prepared set.
_LATER: dict[str, Any] = {
    "long_tail": "none", "missing_labels": 0.0, "unlabelled": "keep", "class_freq": None, "class_split": None
}  # fmt: skip
IRRELEVANT = {"head_min", "tail_max", "val_fraction", "refit", "download", "long_tail_largest", *_LATER}
# Photos encoded beforehand to learn how much disk all will take.
_SAMPLE = 32


def prepare(
    config: TrainConfig,
    folder: str | os.PathLike[str],
    *,
    short_side: int = 256,
    store: str = "raw",
    workers: int = 0,
    progress: bool = True,
) -> PreparedReport:
    """Write train and test of a recipe to `folder`; interrupted at any moment, the same call goes on.

    Args:
        config: names the data set.
        folder: a new or empty one, or one that the same settings were begun or finished in.
        short_side: photos with a longer one are resized to this shorter side, in pixels; others stay as they are.
        store: "raw", uncompressed, the fastest to read; "jpeg", quality 95, about a seventh of the disk.
        workers: processes that decode.
        progress: whether to show a bar, on terminals.

    Raises:
        ConfigError: a setting is out of bounds, or not the one that `folder` was begun with.
        ValueError: the disk is too small, the lists have changed since, or no photo of a split can be read.
    """
    if store not in STORES:
        raise ConfigError(f"store is {store!r}; choose one of {', '.join(STORES)}")
    if short_side < 1:
        raise ConfigError(f"short_side is {short_side}; it must be 1 or more")
    folder = Path(folder).expanduser()
    settings = _settings(config, short_side, store)
    finished = _check_folder(folder, settings)
    if finished is not None:
        shutil.rmtree(folder / ".progress", ignore_errors=True)
        return dataclasses.replace(report_of(folder, finished), was_complete=True)
    data = read_data(dataclasses.replace(config, **_LATER))
    _begin(folder, settings, data)
    splits = {"train": data.train, "test": data.test}
    encoders = {split: Encoder(dataset, short_side, store) for split, dataset in splits.items()}
    _check_disk(folder, encoders)
    shards = {}
    for split in SPLITS:
        shards[split] = _write_split(folder, split, splits[split], encoders[split], workers, progress)
    record = {
        "settings": settings,
        "classes": class_names(data.train),
        "listed": {split: len(dataset) for split, dataset in splits.items()},
        "absent": len(data.skipped),
        "shards": {split: [_without_skipped(shard) for shard in found] for split, found in shards.items()},
        "versions": _versions(),
    }
    _write_skipped(folder, data, shards)
    report = report_of(folder, record)
    with written_aside(folder / "prepared.json") as aside:
        aside.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(folder / ".progress")
    return report


def _settings(config: TrainConfig, short_side: int, store: str) -> dict[str, Any]:
    keys = [field.name for field in dataclasses.fields(DataConfig) if field.name not in IRRELEVANT]
    values = {key: getattr(config, key) for key in (*keys, "test_difficult")}
    if config.data_root:
        values["data_root"] = str(Path(config.data_root).expanduser().resolve())
    return {"short_side": short_side, "store": store, **values}


def _check_folder(folder: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The record of a finished folder, None for one to write in."""
    finished, begun = folder / "prepared.json", folder / ".progress" / "begun.json"
    if not finished.is_file() and not begun.is_file():
        if folder.exists() and (not folder.is_dir() or any(path.name != ".progress" for path in folder.iterdir())):
            raise ConfigError(f"{folder} holds something else already; name a new or an empty folder")
        return None
    record = read_record(finished if finished.is_file() else begun)
    old = record.get("settings", {})
    changed = [
        f"{key} is {settings.get(key)!r} and was {old.get(key)!r}"
        for key in {**settings, **old}
        if settings.get(key) != old.get(key)
    ]
    if changed:
        what = "finished" if finished.is_file() else "begun"
        raise ConfigError(f"{folder} was {what} with other settings: {'; '.join(changed)}. Name another folder")
    return record if finished.is_file() else None


def _begin(folder: Path, settings: dict[str, Any], data: LongTailData) -> None:
    """Note what is prepared, or see that it is still the same."""
    begun = folder / ".progress" / "begun.json"
    listing = hashlib.sha256()
    for dataset in (data.train, data.test):
        names = "\0".join([*class_names(dataset), "", *dataset.with_format(None)["image_id"]])
        listing.update(f"{len(dataset)} {names}".encode())
        for column in ("labels", "unknown"):
            for array in label_pairs(dataset, column):
                listing.update(array.tobytes())
    record = {"settings": settings, "listing": listing.hexdigest()}
    if begun.is_file() and read_record(begun).get("listing") != record["listing"]:
        raise ValueError(
            f"{folder} was begun with other photos or labels than {settings['data_root'] or settings['dataset']} has "
            "now; remove it, or name another folder"
        )
    with written_aside(begun) as aside:
        aside.write_text(json.dumps(record, indent=2), encoding="utf-8")


def _check_disk(folder: Path, encoders: dict[str, Encoder]) -> None:
    """Encode a few photos that are still to be written, and compare what all will take with what is free."""
    need = 0.0
    for split, encoder in encoders.items():
        missing = [
            rows
            for number, rows in enumerate(shard_rows(len(encoder)))
            if finished_shard(folder / split, _notes(folder, split, number), rows) is None
        ]
        left = sum(map(len, missing))
        if not left:
            continue
        rows = [row for part in missing for row in part][:: max(1, left // _SAMPLE)]
        sizes = [len(photo.content) for row in rows if (photo := encoder[row]).content is not None]
        need += left * sum(sizes) / max(len(sizes), 1)
    free = shutil.disk_usage(folder).free
    if need > free:
        raise ValueError(
            f"{folder} needs about {megabytes(need)} more, and {megabytes(free)} are free; make room, or choose a "
            "smaller short_side or store jpeg"
        )


def _write_split(
    folder: Path, split: str, dataset: datasets.Dataset, encoder: Encoder, workers: int, progress: bool
) -> list[Shard]:
    from tqdm import tqdm

    parts = shard_rows(len(dataset))
    notes = [_notes(folder, split, number) for number in range(len(parts))]
    shards = [finished_shard(folder / split, note, part) for note, part in zip(notes, parts, strict=True)]
    rows = [row for part, shard in zip(parts, shards, strict=True) if shard is None for row in part]
    bar = tqdm(
        encoded_photos(encoder, rows, workers), desc=f"preparing {split}", unit="photo", total=len(dataset),
        initial=len(dataset) - len(rows), disable=None if progress else True,
    )  # fmt: skip
    encoded = iter(bar)
    (folder / split).mkdir(exist_ok=True)
    for stray in (folder / split).glob(".data-*.arrow"):
        stray.unlink()  # a shard that a killed process had not finished
    for number, part in enumerate(parts):
        if shards[number] is None:
            path = folder / split / f"data-{number:05d}-of-{len(parts):05d}.arrow"
            shards[number] = write_shard(path, notes[number], dataset, part, encoded)
    bar.close()
    found = [shard for shard in shards if shard is not None]
    if len(dataset) and not sum(shard.rows for shard in found):
        name, cause = found[0].skipped[0]
        raise ValueError(f"no photo of {split} can be read; the first of {len(dataset)} is {name}: {cause}")
    _describe(folder / split, dataset, found)
    return found


def _describe(folder: Path, dataset: datasets.Dataset, shards: list[Shard]) -> None:
    """The two files beside the shards that make them a data set for `datasets.load_from_disk`."""
    import datasets

    sizes = json.dumps([str(folder.resolve()), *(dataclasses.asdict(shard) for shard in shards)])
    state: dict[str, Any] = {
        "_data_files": [{"filename": shard.file} for shard in shards],
        "_fingerprint": hashlib.sha256(sizes.encode()).hexdigest()[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    datasets.DatasetInfo(features=dataset.features).write_to_directory(str(folder))
    with written_aside(folder / "state.json") as aside:
        aside.write_text(json.dumps(state, indent=2), encoding="utf-8")


def _write_skipped(folder: Path, data: LongTailData, shards: dict[str, list[Shard]]) -> None:
    """The absent photos first: their readers do not say of which split they are."""
    rows = [("", photo.image_id, photo.cause) for photo in data.skipped]
    rows += [(split, *photo) for split, found in shards.items() for shard in found for photo in shard.skipped]
    with written_aside(folder / "skipped.csv") as aside, aside.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("split", "image_id", "cause"), *rows])


def _without_skipped(shard: Shard) -> dict[str, Any]:
    """For the record: which photos were skipped stands in skipped.csv."""
    return {**dataclasses.asdict(shard), "skipped": len(shard.skipped)}


def _notes(folder: Path, split: str, number: int) -> Path:
    return folder / ".progress" / f"{split}-{number:05d}.json"


def _versions() -> dict[str, str]:
    from importlib import metadata

    return {"clip_more": __version__, **{name: metadata.version(name) for name in ("pillow", "datasets", "pyarrow")}}
