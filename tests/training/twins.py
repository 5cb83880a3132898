"""Runs of a few seconds, their uninterrupted twins, and what must be the same in both."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import yaml
from safetensors import safe_open

# What the killed runs differ in; all have dropout, fp32, and end in the middle of an epoch.
SETTINGS: dict[str, dict[str, Any]] = {
    "accumulation": {"accumulation": 2, "batch_size": 5},
    "running average": {"keep": "ema", "checkpoint_every": 2},
    "best weights": {"keep": "best", "val_fraction": 0.25, "eval_every": 1, "checkpoint_every": 2},
    "data workers": {"workers": 2},
    "weighted sampler": {"sampler": "weighted", "sampler_exponent": 0.3, "checkpoint_every": 2},
    "progressive sampler": {"sampler": "progressive", "accumulation": 2, "batch_size": 5, "keep": "ema"},
}


@dataclass(frozen=True)
class Twin:
    """An uninterrupted run.

    Attributes:
        folder: Of the run.
        seconds: It took.
    """

    folder: Path
    seconds: float


def unreadable(folder: Path) -> list[str]:
    """Files of a run that cannot be read in full, by name and cause.

    Hidden ones are what a kill may leave half-written; `hidden` lists them.
    """
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not _is_hidden(path, folder):
            try:
                _read(path)
            except Exception as error:
                found.append(f"{path.relative_to(folder)}: {error}")
    return found


def hidden(folder: Path) -> list[str]:
    """Names of hidden files and folders of a run: what is left of something half-written, the lock aside."""
    paths = [path.relative_to(folder) for path in folder.rglob("*") if _is_hidden(path, folder)]
    return sorted(str(path) for path in paths if path.name != ".lock")


def newest_checkpoint(folder: Path) -> int | None:
    """Step of the last complete checkpoint of a run, by its name."""
    steps = [int(path.name.removeprefix("step_")) for path in (folder / "checkpoints").glob("step_*")]
    return max(steps, default=None)


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _read(path: Path) -> None:
    if path.suffix == ".safetensors":
        tensors(path)
    elif path.suffix == ".jsonl":
        for line in path.read_text(encoding="utf-8").splitlines():
            json.loads(line)
    elif path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))
    elif path.suffix == ".yaml":
        yaml.safe_load(path.read_text(encoding="utf-8"))
    elif path.suffix == ".png":
        with PIL.Image.open(path) as image:
            image.load()
    else:
        path.read_text(encoding="utf-8")


def tensors(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Type, shape and bytes of each tensor of a file: equal ones are equal bit for bit."""
    with safe_open(path, framework="np") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    return {name: (str(array.dtype), array.shape, array.tobytes()) for name, array in arrays.items()}


def differences(folder: Path, twin: Path) -> list[str]:
    """Weights of merged/, general/ and tail/, and logits of all test photos, in which two finished runs differ."""
    found = []
    for name in ("merged/model", "merged/open_clip_model", "general/model", "tail/adapter_model", "report/scores"):
        files = [run / f"{name}.safetensors" for run in (folder, twin)]
        if not any(file.is_file() for file in files) and name.startswith(("general", "tail")):
            continue  # runs without a tail
        one, two = map(tensors, files)
        found += [f"{name}: {key}" for key in sorted(one.keys() | two.keys()) if one.get(key) != two.get(key)]
    return found


def course(folder: Path) -> list[tuple[int, float, float | None]]:
    """Step, loss and discrepancy of each step as readers of metrics.jsonl see them."""
    from clip_more.evaluation.run_events import read_events

    events = read_events(folder / "metrics.jsonl")
    return [(e["step"], e["loss"], e["discrepancy"]) for e in events if e["event"] == "train"]


def write_recipe(photos: Path, folder: Path, setting: str, **changes: Any) -> Path:
    """A recipe of a few seconds, in `folder`, whose run is `folder/run`.

    Args:
        photos: A list-file data set, as the fixture `squares` makes it.
        folder: Empty or absent.
        setting: One of `SETTINGS`.
        changes: Keys that are otherwise.
    """
    keys: dict[str, Any] = {
        "dataset": "lists", "dataset_name": "kills", "method": "x", "data_root": str(photos),
        "train_list": "train.txt", "test_list": "test.txt", "class_file": "classes.txt",
        "head_min": 12, "tail_max": 8, "model": "tiny", "tuning": "more",
        "dropout": 0.2, "lr": 1e-3, "lr_head": 1e-2, "batch_size": 10, "max_steps": 6, "workers": 0, "log_every": 1,
        "checkpoint_every": 1, "bootstrap": 10, "run": "run", "output_dir": str(folder),
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(keys | SETTINGS[setting] | changes))
    return recipe
