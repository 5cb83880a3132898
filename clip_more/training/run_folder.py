"""The folder of a run: claimed once, recognised again, never shared by two recipes."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import IO, Any

import yaml

from clip_more.config import ConfigError, DataConfig, TrainConfig
from clip_more.files import written_aside

try:
    import fcntl
except ImportError:  # Windows: nothing keeps two trainers apart there
    fcntl = None  # type: ignore[assignment]

_LOCK = ".lock"
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
    changes: dict[str, list[Any]] = {}
    if recipe.exists() and has_trained(folder):
        changes = changed_keys(recipe, config)
        if changes and config.changed_recipe == "refuse":
            raise ConfigError(_difference(folder, changes))
        return changes
    foreign = folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir())
    if has_trained(folder):
        raise ConfigError(
            f"{folder} has checkpoints and no config.yaml, so it cannot be known of which recipe they are; bring that "
            "file back, or name another run with --run NAME"
        )
    if foreign and not recipe.exists():
        raise ConfigError(f"{folder} is not empty and holds no run; name another with --run NAME")
    if (folder / "metrics.jsonl").exists():
        print(
            f"note: {folder} has no checkpoint: it starts from its first step; its log so far is metrics.before.jsonl"
        )
        (folder / "metrics.jsonl").replace(folder / "metrics.before.jsonl")
    for stale in (folder / ZERO_SHOT, folder / TEST_IDS):
        stale.unlink(missing_ok=True)
    write_recipe(config, versions)
    return changes


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
    before = next((e["photos_a_step"] for e in reversed(_starts(config.run_folder / "metrics.jsonl"))), photos)
    if before != photos:
        raise ConfigError(
            f"{config.run_folder} is finished, with {before} photos a step, and processes x batch_size x accumulation "
            f"is {photos} now; name another run with --run NAME"
        )
    return True


def _starts(metrics: Path) -> list[dict[str, Any]]:
    """The `start` events of a log, whatever else became of it."""
    lines = metrics.read_bytes().splitlines() if metrics.is_file() else []
    starts = []
    for line in lines:
        if line.startswith(b'{"event": "start"'):
            with suppress(ValueError):
                starts.append(json.loads(line))
    return starts


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


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Inside, no other trainer can take this run: two of them would write one folder in turns.

    The lock is the process's own (data workers do not inherit it) and goes with it, whatever ends it.

    Raises:
        ConfigError: If another process trains this run now.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("a+", encoding="utf-8") as file:
        taken = _take(file)
        if not taken:  # `clip-more runs` may have looked just now, which takes it for an instant
            time.sleep(0.2)
            taken = _take(file)
        if not (taken and _is_still(folder / _LOCK, file)):
            file.seek(0)
            who = file.read().strip() or "another process"
            raise ConfigError(f"{folder} is being trained by {who}; wait for it, or name another run with --run NAME")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        try:
            yield
        finally:
            (folder / _LOCK).unlink(missing_ok=True)


def clear_leftovers(folder: Path) -> None:
    """Remove what a kill left half-written: files and folders under the names of `clip_more.files`."""
    for path in [*folder.glob(".*"), *(folder / "report").glob(".*")]:
        if _ASIDE.fullmatch(path.name) and not path.is_symlink():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def locked(folder: Path) -> bool:
    """Whether another process trains this run now, as far as this machine can tell.

    Not for the process that trains it: closing the file here would let its own lock go.
    """
    try:
        with (folder / _LOCK).open("r+", encoding="utf-8") as file:
            return not _take(file)
    except (OSError, ConfigError):
        return False


def _take(file: IO[str]) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        raise ConfigError(
            f"{file.name}: this disk takes no locks ({error.strerror}); put output_dir on another"
        ) from None
    return True


def _is_still(path: Path, file: IO[str]) -> bool:
    """Whether the open file is the one of that name: its holder may have removed it meanwhile."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


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
    if not path.is_file() or not (has_trained(folder) or (folder / "merged").is_dir()):
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
        active: Whether this process writes; only the one does that has claimed the folder.
    """

    def __init__(self, folder: Path, active: bool = False) -> None:
        self.path = folder / "metrics.jsonl"
        self.active = active

    def write(self, event: str, **values: Any) -> None:
        """Append one event with the time of day."""
        if not self.active:
            return
        line = json.dumps({"event": event, "time": round(time.time(), 3), **values}, allow_nan=False)
        try:
            with self.path.open("a+b") as file:
                file.seek(max(0, file.tell() - 1))
                cut = file.read() not in (b"", b"\n")  # a kill may have left half a line
                file.write(("\n" * cut + line + "\n").encode())
        except OSError as error:
            raise OSError(
                error.errno, f"{self.path} could not be written: {error.strerror}. The last checkpoint is untouched"
            ) from error

    def write_if_possible(self, event: str, **values: Any) -> None:
        """The same where a full disk, say, is no reason to fail: another failure is being reported."""
        with suppress(OSError):
            self.write(event, **values)

    def offset(self) -> int:
        """Bytes written so far, on disk: what stands behind them was not yet, when this was asked."""
        with self.path.open("a+b") as file:
            os.fsync(file.fileno())
            return file.tell()


def _read(recipe: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(recipe.read_text(encoding="utf-8"))
        values["versions"]  # stands last: a file that was cut has none
        return dict(values["config"])
    except (OSError, yaml.YAMLError, TypeError, KeyError) as error:
        raise ConfigError(f"{recipe} is not the config of a run ({type(error).__name__})") from None
