"""A sweep: arms to train and compare, read from YAML and checked.

name: strength                 # = the file's name
bed: digits_mlt                # see eval/ablate_beds.py
recipe: digits_mlt/bce.yaml    # below recipes/: what every arm starts from
judged_on: validation          # to choose; or test, to confirm
seeds: 3                       # 0, 1, 2; or a list
set: {epochs: 8}               # keys of every arm
base: bce                      # the arm that others are compared with
arms:                          # name to keys; `from` starts from another arm's
  bce: {}
  more: {tuning: more}
grid: {from: more, rho: [0.05, 0.1]}   # every combination is an arm, here "more rho=0.05" and "more rho=0.1"
steps_times: {long: 2}         # arms that get so many times the steps
wise: {bce: [0.5]}             # arms also judged between the untouched CLIP and theirs, as "bce alpha=0.5"
contrasts: {more: ["bce alpha=0.5"]}   # arms that are also compared with others than the base, in a second table
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from clip_more.config import ConfigError, TrainConfig
from clip_more.recipe import parse_value, read_yaml, unknown_key

JUDGED_ON = ("validation", "test")
_KEYS = {
    "name", "bed", "recipe", "judged_on", "seeds", "set", "base", "arms", "grid", "steps_times", "wise", "contrasts",
}  # fmt: skip
_NEEDED = ("name", "bed", "recipe", "judged_on", "seeds", "base", "arms")
# What the runner sets, alike for all arms of a seed.
_OWN_KEYS = {"seed", "data_seed", "dataset", "data_root", "output_dir", "run", "test_split", "img_ids", "dataset_name"}


@dataclass(frozen=True)
class Sweep:
    """What a sweep file says.

    Attributes:
        path: The file.
        name: Of the sweep and its outputs.
        bed: A name of `ablate_beds.BEDS`.
        recipe: Below recipes/.
        judged_on: "validation" or "test".
        seeds: Of data, order and weights alike.
        base: The arm that others are compared with.
        arms: Name to keys, those of `set` and of arms it comes from included; in the order of the file, grid last.
        times: Arm to the factor on its steps.
        wise: Arm to the alphas between the untouched CLIP and it that are also judged.
        contrasts: Pairs of names of lines: an arm, and another that it is compared with besides the base.
    """

    path: Path
    name: str
    bed: str
    recipe: str
    judged_on: str
    seeds: tuple[int, ...]
    base: str
    arms: dict[str, dict[str, Any]]
    times: dict[str, float] = field(default_factory=dict)
    wise: dict[str, tuple[float, ...]] = field(default_factory=dict)
    contrasts: tuple[tuple[str, str], ...] = ()

    def derived(self, arm: str) -> dict[str, float]:
        """Lines that an arm gets besides its own: name to the alpha of WiSE-FT."""
        return {f"{arm} alpha={value:g}": value for value in self.wise.get(arm, ())}


def read_sweep(path: Path) -> Sweep:
    """Read and check a sweep file; the keys of its arms are checked where they become recipes.

    Raises:
        ConfigError: Naming the file, and the arm where it is one's fault.
    """
    values = read_yaml(path)
    for key in values:
        if key not in _KEYS:
            close = difflib.get_close_matches(str(key), _KEYS, n=1)
            more = f"; did you mean {close[0]}?" if close else f"; a sweep has {', '.join(sorted(_KEYS))}"
            raise ConfigError(f"{path}: unknown key {key!r}{more}")
    if missing := [key for key in _NEEDED if key not in values]:
        raise ConfigError(f"{path}: {missing[0]} is missing")
    for key in ("name", "bed", "recipe", "base"):
        if not isinstance(values[key], str):
            raise ConfigError(f"{path}: {key} is {values[key]!r}, but it must be text")
    if values["name"] != path.stem:
        raise ConfigError(f"{path}: name is {values['name']!r}; it must be the file's name, {path.stem}")
    if values["judged_on"] not in JUDGED_ON:
        raise ConfigError(f"{path}: judged_on is {values['judged_on']!r}; choose one of {', '.join(JUDGED_ON)}")
    arms = _arms(path, values)
    if values["base"] not in arms:
        raise ConfigError(f"{path}: base is {values['base']!r}, which is no arm; arms: {', '.join(arms)}")
    times = {arm: numbers[0] for arm, numbers in _of_arms(path, "steps_times", values, arms).items()}
    sweep = Sweep(
        path, values["name"], values["bed"], values["recipe"], values["judged_on"], _seeds(path, values["seeds"]),
        values["base"], arms, times, _of_arms(path, "wise", values, arms),
    )  # fmt: skip
    if wrong := [arm for arm, points in sweep.wise.items() if not all(0 <= point <= 1 for point in points)]:
        raise ConfigError(f"{path}: wise of {wrong[0]!r} lies between 0 (untouched) and 1 (fine-tuned)")
    names = [*arms, *(name for arm in arms for name in sweep.derived(arm))]
    _check_names(path, names)
    return replace(sweep, contrasts=_contrasts(path, values.get("contrasts") or {}, names))


def with_keys(sweep: Sweep, given: Sequence[str]) -> Sweep:
    """The sweep with these keys in every arm, each written KEY=VALUE.

    Raises:
        ConfigError: Naming what is no such key and value.
    """
    keys = {}
    for text in given:
        key, sign, value = text.partition("=")
        if not sign:
            raise ConfigError(f"--set: {text!r} is no KEY=VALUE")
        if key not in TrainConfig.__dataclass_fields__:
            raise ConfigError(f"--set: {unknown_key(key)}")
        if len({str(own.get(key)) for own in sweep.arms.values()}) > 1:
            raise ConfigError(f"--set: arms of {sweep.path} differ in {key}; copy the file, and change it there")
        keys[key] = parse_value(key, value)
    keys = _keys(sweep.path, "--set", keys)
    return replace(sweep, arms={name: own | keys for name, own in sweep.arms.items()})


def folder_name(arm: str) -> str:
    """An arm's name as part of a folder's."""
    return re.sub(r"[^\w.=+-]+", "_", arm)


def _arms(path: Path, values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    given = _mapping(path, "arms", values["arms"])
    own = {str(name): _mapping(path, f"arm {name!r}", keys or {}) for name, keys in given.items()}
    if not own:
        raise ConfigError(f"{path}: arms is empty; name one at least")
    own |= _grid(path, _mapping(path, "grid", values.get("grid") or {}))
    shared = _keys(path, "set", values.get("set") or {})

    def resolve(name: str, before: tuple[str, ...] = ()) -> dict[str, Any]:
        keys = dict(own[name])
        parent = keys.pop("from", None)
        if parent is None:
            return keys
        if parent not in own or parent in (*before, name):
            what = "leads back to itself" if parent in own else "is no arm"
            raise ConfigError(f"{path}, arm {name!r}: from: {parent} {what}")
        return resolve(parent, (*before, name)) | keys

    return {name: shared | _keys(path, f"arm {name!r}", resolve(name)) for name in own}


def _grid(path: Path, grid: dict[str, Any]) -> dict[str, dict[str, Any]]:
    if not grid:
        return {}
    start = {"from": grid["from"]} if "from" in grid else {}
    axes = {key: value if isinstance(value, list) else [value] for key, value in grid.items() if key != "from"}
    if empty := [key for key, value in axes.items() if not value]:
        raise ConfigError(f"{path}, grid: {empty[0]} is an empty list")
    varied = [key for key, value in axes.items() if len(value) > 1 or isinstance(grid[key], list)]
    arms = {}
    for combination in itertools.product(*axes.values()):
        keys = dict(zip(axes, combination, strict=True))
        name = " ".join([*([str(grid["from"])] if start else []), *(f"{key}={_shown(keys[key])}" for key in varied)])
        arms[name] = start | keys
    return arms


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def _keys(path: Path, where: str, values: Any) -> dict[str, Any]:
    keys = _mapping(path, where, values)
    if own := sorted(_OWN_KEYS & keys.keys()):
        raise ConfigError(f"{path}, {where}: {own[0]} is set by the bed and the seed; leave it out")
    return keys


def _mapping(path: Path, where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{path}, {where}: {value!r} is no mapping of keys to values")
    return dict(value)


def _seeds(path: Path, value: Any) -> tuple[int, ...]:
    seeds = tuple(range(value)) if isinstance(value, int) and not isinstance(value, bool) else value
    if isinstance(seeds, list | tuple) and seeds and all(type(seed) is int and seed >= 0 for seed in seeds):
        return tuple(dict.fromkeys(seeds))
    raise ConfigError(f"{path}: seeds is {value!r}; give how many (3 means 0, 1, 2), or a list of them")


def _of_arms(path: Path, key: str, values: Mapping[str, Any], arms: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
    found = {}
    for arm, value in _mapping(path, key, values.get(key) or {}).items():
        if arm not in arms:
            raise ConfigError(f"{path}, {key}: {arm!r} is no arm; arms: {', '.join(arms)}")
        numbers = value if isinstance(value, list) else [value]
        good = all(isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in numbers)
        if not (good and numbers) or (key == "steps_times" and (len(numbers) > 1 or numbers[0] <= 0)):
            what = "a number above 0" if key == "steps_times" else "a list of numbers"
            raise ConfigError(f"{path}, {key}: of {arm!r} {what} is needed, not {value!r}")
        found[arm] = tuple(float(number) for number in numbers)
    return found


def _contrasts(path: Path, value: Any, names: list[str]) -> tuple[tuple[str, str], ...]:
    pairs = []
    for arm, others in _mapping(path, "contrasts", value).items():
        if not isinstance(others, list) or not others:
            raise ConfigError(f"{path}, contrasts: of {arm!r} a list of arms is needed, not {others!r}")
        pairs += [(arm, other) for other in others]
    for pair in pairs:
        if unknown := [name for name in pair if name not in names]:
            raise ConfigError(f"{path}, contrasts: {unknown[0]!r} is no arm; arms: {', '.join(names)}")
        if pair[0] == pair[1]:
            raise ConfigError(f"{path}, contrasts: {pair[0]!r} is compared with itself; name another arm")
    return tuple(dict.fromkeys(pairs))


def _check_names(path: Path, names: list[str]) -> None:
    """Two arms may not share a name, nor a folder."""
    seen: dict[str, str] = {}
    for name in names:
        if (other := seen.setdefault(folder_name(name).casefold(), name)) != name or names.count(name) > 1:
            raise ConfigError(f"{path}: arms {other!r} and {name!r} would share a folder; rename one")
