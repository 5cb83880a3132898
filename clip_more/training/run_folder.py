"""The folder of a run: claimed once, recognised again, never shared by two recipes."""

from __future__ import annotations

import json
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from clip_more.config import ConfigError, DataConfig, TrainConfig
from clip_more.files import written_aside
from clip_more.training.checkpoint import list_checkpoints

# Test logits of the untouched CLIP, below the folder of a run that is not finished yet.
ZERO_SHOT = "report/zero_shot.safetensors"
# Ids of the test photos, where the data has no test split and they were drawn: what is judged later is judged on them.
TEST_IDS = "test_ids.json"

# Keys that may change between two starts of a run without making it another run.
_FREE = {"data_root", "output_dir", "run", "workers", "log_every", "trackers", "push_to_hub", "checkpoint_every"}


def claim(config: TrainConfig, versions: dict[str, str], writes: bool = True) -> Path:
    """Make the run's folder, or recognise it as this recipe's own.

    As long as nothing was trained, the recipe of a folder may still change.

    Args:
        config: The recipe.
        versions: Of Python and the libraries, written beside it.
        writes: Whether this process is the one that writes.

    Raises:
        ConfigError: If it belongs to another recipe (the differing keys are shown), or holds foreign files.
    """
    folder = config.run_folder
    recipe = folder / "config.yaml"
    if recipe.exists() and list_checkpoints(folder / "checkpoints"):
        _same_recipe(recipe, config)
        return folder
    foreign = folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir())
    if foreign and not recipe.exists():
        raise ConfigError(f"{folder} is not empty and holds no run; name another with --run NAME")
    if writes:
        for stale in (folder / ZERO_SHOT, folder / TEST_IDS, folder / "metrics.jsonl"):
            stale.unlink(missing_ok=True)
        text = yaml.safe_dump({"config": config.to_dict(), "versions": versions}, sort_keys=False, allow_unicode=True)
        with written_aside(recipe) as aside:
            aside.write_text(text, encoding="utf-8")
    return folder


def finished(config: TrainConfig) -> bool:
    """Whether this recipe's run is done: its report comes last.

    Raises:
        ConfigError: If the folder is a run of another recipe.
    """
    if not (config.run_folder / "report" / "results.json").exists():
        return False
    _same_recipe(config.run_folder / "config.yaml", config)
    return True


def check_same_held_out(config: TrainConfig, folder: Path) -> None:
    """Refuse to call photos held out that a run has trained on.

    Args:
        config: The run's recipe, with what shall differ from it.
        folder: Of the run.

    Raises:
        ConfigError: If a key that decides what was held out differs.
    """
    # They choose test photos, bounds of groups, or where the same photos lie.
    free = {"data_root", "test_split", "test_year", "test_list", "head_min", "tail_max", "download", "follow_links"}
    own = read_config(folder)
    keys = {field.name for field in fields(DataConfig)} - free | {"seed", "legacy_select_on_test"}
    if changed := sorted(key for key in keys if getattr(config, key) != getattr(own, key)):
        raise ConfigError(f"--{changed[0]} would hold out other photos than {folder} did, some it trained on; drop it")


def read_config(folder: Path) -> TrainConfig:
    """The resolved recipe of a run.

    Raises:
        ConfigError: If `folder` holds no run.
    """
    from clip_more.recipe import from_dict

    return from_dict(_read(folder / "config.yaml"), origin=str(folder / "config.yaml"))


def save_test_ids(folder: Path, ids: list[str] | None) -> None:
    """Remember the drawn test photos of a run, where there are any."""
    if ids is not None:
        with written_aside(folder / TEST_IDS) as aside:
            aside.write_text(json.dumps(ids, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")


def read_test_ids(folder: Path) -> list[str] | None:
    """The drawn test photos of a run that has trained; None where its data has a test split, or nothing was trained.

    Args:
        folder: Of the run, or its `merged/` or `general/`.

    Raises:
        ConfigError: If the file is damaged.
    """
    folder = folder.parent if folder.name in ("merged", "general") else folder
    path = folder / TEST_IDS
    if not path.is_file() or not (list_checkpoints(folder / "checkpoints") or (folder / "merged").is_dir()):
        return None
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error}); without it the test photos of this run are lost") from None
    if not isinstance(ids, list) or not all(isinstance(name, str) for name in ids):
        raise ConfigError(f"{path} holds no list of photo ids; without it the test photos of this run are lost")
    return ids


class MetricsLog:
    """metrics.jsonl: one JSON object an event, appended.

    Args:
        folder: Of the run.
        active: Whether this process writes.
    """

    def __init__(self, folder: Path, active: bool) -> None:
        self.path = folder / "metrics.jsonl"
        self.active = active

    def write(self, event: str, **values: Any) -> None:
        """Append one event with the time of day."""
        if not self.active:
            return
        with self.path.open("a+b") as file:
            file.seek(max(0, file.tell() - 1))
            cut = file.read() not in (b"", b"\n")  # a kill may have left half a line
            line = json.dumps({"event": event, "time": round(time.time(), 3), **values}, allow_nan=False)
            file.write(("\n" * cut + line + "\n").encode())


def _same_recipe(recipe: Path, config: TrainConfig) -> None:
    before, now = _read(recipe), config.to_dict()
    changed = [key for key in now if key not in _FREE and before.get(key) != now[key]]
    if changed:
        shown = "; ".join(f"{key}: {before.get(key)!r} there, {now[key]!r} now" for key in changed)
        raise ConfigError(
            f"{recipe.parent} is a run of another recipe ({shown}); name this one with "
            "--run NAME, or delete that folder"
        )


def _read(recipe: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(recipe.read_text(encoding="utf-8"))
        return dict(values["config"])
    except (OSError, yaml.YAMLError, TypeError, KeyError) as error:
        raise ConfigError(f"{recipe} is not the config of a run ({type(error).__name__})") from None
