"""The folder of a run: claimed once, recognised again, never shared by two recipes."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from clip_more.config import ConfigError, DataConfig, TrainConfig
from clip_more.files import written_aside
from clip_more.training.metrics_log import last_photos_a_step

_ASIDE = re.compile(
    r"\.((config|test_ids|class_profile|results|scores|zero_shot|skipped|training|ap_by_frequency)\.\d+\.\w+"
    r"|(general|tail|merged|report)\.(new|old)-\d+)"
)

# Test logits of the untouched CLIP, below the folder of a run that is not finished yet.
ZERO_SHOT = "report/zero_shot.safetensors"
# Ids of the test photos, where the data has no test split and they were drawn: what is judged later is judged on them.
TEST_IDS = "test_ids.json"

# Keys that may change between two starts of a run without making it another run.
_FREE = {
    "data_root", "output_dir", "run", "workers", "log_every", "trackers", "push_to_hub", "checkpoint_every",
    "keep_checkpoints", "changed_recipe", "worker_timeout", "process_timeout",
}  # fmt: skip
# Keys that share the same photos of a step out otherwise; their product is compared when the checkpoint is read.
_SHARES = {"processes", "distribution", "batch_size", "accumulation"}


def claim(config: TrainConfig, versions: dict[str, str]) -> dict[str, list[Any]]:
    """Make the run's folder, or recognise it as this recipe's own; on the main process alone.

    As long as nothing was trained, the recipe of a folder may still change; after that only with
    `changed_recipe: accept`.

    Args:
        config: The recipe.
        versions: Of Python and the libraries, written beside it.

    Returns:
        What is accepted: key to its value before and now. The folder's recipe is the old one until `write_recipe`.

    Raises:
        ConfigError: If it belongs to another recipe (the difference is shown), or holds foreign files.
    """
    folder = config.run_folder
    recipe = folder / "config.yaml"
    if has_trained(folder):
        if not recipe.exists():
            raise ConfigError(
                f"{folder} has checkpoints and no config.yaml, so it cannot be known of which recipe they are; bring "
                "that file back, or name another run with --run NAME"
            )
        changes = changed_keys(recipe, config)
        if changes and config.changed_recipe == "refuse":
            raise ConfigError(_difference(folder, changes))
        return changes
    if folder.exists() and not recipe.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise ConfigError(f"{folder} is not empty and holds no run; name another with --run NAME")
    if (folder / "metrics.jsonl").exists():
        print(
            f"note: {folder} has no checkpoint: it starts from its first step; its log so far is metrics.before.jsonl"
        )
        (folder / "metrics.jsonl").replace(folder / "metrics.before.jsonl")
    for stale in (folder / ZERO_SHOT, folder / TEST_IDS):
        stale.unlink(missing_ok=True)
    write_recipe(config, versions)
    return {}


def has_trained(folder: Path) -> bool:
    """Whether a run has a checkpoint, intact or not."""
    names = [path.name for path in (folder / "checkpoints").glob("*")]
    return any(name.startswith(("step_", "damaged_step_")) for name in names)


def finished(config: TrainConfig, processes: int = 1) -> bool:
    """Whether this recipe's run is done: its report comes last.

    Args:
        config: The recipe.
        processes: That came up.

    Raises:
        ConfigError: If the folder is a run of another recipe, or of other photos a step.
    """
    if not (config.run_folder / "report" / "results.json").exists():
        return False
    if changes := changed_keys(config.run_folder / "config.yaml", config):
        raise ConfigError(_difference(config.run_folder, changes, finished=True))
    photos = processes * config.batch_size * config.accumulation
    before = last_photos_a_step(config.run_folder)
    if before not in (None, photos):
        raise ConfigError(
            f"{config.run_folder} is finished, with {before} photos a step, and processes x batch_size x accumulation "
            f"is {photos} now; name another run with --run NAME"
        )
    return True


def changed_keys(recipe: Path, config: TrainConfig) -> dict[str, list[Any]]:
    """Keys whose values make another run of it: key to [value in the file, value now].

    A key that the file lacks (it was written by an older clip_more) had its default.
    """
    before, now, defaults = _read(recipe), config.to_dict(), TrainConfig().to_dict()
    keys = [key for key in now if key not in _FREE | _SHARES and before.get(key, defaults[key]) != now[key]]
    return {key: [before.get(key, defaults[key]), now[key]] for key in keys}


def _difference(folder: Path, changes: dict[str, list[Any]], finished: bool = False) -> str:
    width = max(len(key) for key in changes)
    lines = [f"    {key.ljust(width)}  {before!r} there, {now!r} now" for key, (before, now) in changes.items()]
    accept = "" if finished else "; go on under the new recipe with --changed_recipe accept"
    title = f"{folder} is a{' finished' if finished else ''} run of another recipe:"
    return "\n".join([title, *lines, f"Name this one with --run NAME{accept}; or delete that folder."])


def write_recipe(config: TrainConfig, versions: dict[str, str]) -> None:
    """Make this the recipe of the run's folder."""
    recipe = config.run_folder / "config.yaml"
    text = yaml.safe_dump({"config": config.to_dict(), "versions": versions}, sort_keys=False, allow_unicode=True)
    with written_aside(recipe) as aside:
        aside.write_text(text, encoding="utf-8")


def clear_leftovers(folder: Path) -> None:
    """Remove what a kill left half-written: files and folders under the names of `clip_more.files`."""
    for path in [*folder.glob(".*"), *(folder / "report").glob(".*")]:
        if _ASIDE.fullmatch(path.name) and not path.is_symlink():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


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
        folder: Of the run, or its `merged/`, `general/` or `stage2/<method>/`.

    Raises:
        ConfigError: If the file is damaged.
    """
    if folder.name in ("merged", "general"):
        folder = folder.parent
    elif folder.parent.name == "stage2":
        folder = folder.parent.parent
    path = folder / TEST_IDS
    if not path.is_file() or not (has_trained(folder) or (folder / "merged").is_dir()):
        return None
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error}); without it the test photos of this run are lost") from None
    if not isinstance(ids, list) or not all(isinstance(name, str) for name in ids):
        raise ConfigError(f"{path} holds no list of photo ids; without it the test photos of this run are lost")
    return ids


def _read(recipe: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(recipe.read_text(encoding="utf-8"))
        values["versions"]  # stands last: a file that was cut has none
        return dict(values["config"])
    except (OSError, yaml.YAMLError, TypeError, KeyError) as error:
        raise ConfigError(f"{recipe} is not the config of a run ({type(error).__name__})") from None
