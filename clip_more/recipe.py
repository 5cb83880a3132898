"""From a YAML recipe and command-line overrides to a checked TrainConfig."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from clip_more.config import ConfigError, TrainConfig

_TYPES: dict[str, Any] = typing.get_type_hints(TrainConfig)
_FIELDS = {f.name: f for f in fields(TrainConfig)}
LARGEST = 10**18  # of whole numbers


def load_config(recipe: str | Path | None, overrides: Mapping[str, Any] | None = None) -> TrainConfig:
    """A recipe file, then overrides, checked.

    Args:
        recipe: A YAML file, or None for defaults and overrides alone.
        overrides: Values by key, as YAML would read them.

    Raises:
        ConfigError: On an absent or malformed file, an unknown key, a value of the wrong type or outside its choices,
            or keys that disagree.
    """
    values: dict[str, Any] = {}
    if recipe is not None:
        values = _checked_values(read_yaml(Path(recipe)), str(recipe))
        values.setdefault("method", Path(recipe).stem)
        values.setdefault("dataset_name", Path(recipe).resolve().parent.name)
    values |= _checked_values(overrides or {}, "command line")
    return from_dict(values, origin=str(recipe) if recipe else "command line")


def from_dict(values: Mapping[str, Any], origin: str) -> TrainConfig:
    """A checked TrainConfig from plain values; `origin` is named in errors."""
    checked = _checked_values(values, origin)
    try:
        return TrainConfig(**checked).check()
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from None


# What people from other tools call a key.
_OTHER_NAMES = {"learning_rate": ["lr"], "num_epochs": ["epochs"], "num_workers": ["workers"], "name": ["run"]}


def unknown_key(name: str) -> str:
    """What to say of a key that is none, with the nearest one that is."""
    close = _OTHER_NAMES.get(name) or difflib.get_close_matches(name, _FIELDS, n=1)
    return f"unknown key {name!r}" + (f"; did you mean {close[0]}?" if close else "; --help lists the keys")


def parse_value(name: str, text: str) -> Any:
    """A command-line value for a key, read by the key's type: `1e-5`, `true`, `null`, `a,b` or `[a, b]`.

    What fits no type is returned as text, for `from_dict` to refuse in its own words.
    """
    kinds = _alternatives(_TYPES[name])
    if types.NoneType in kinds and text.lower() in ("null", "none"):
        return None
    if bool in kinds and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if int in kinds and re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        return int(text)
    if float in kinds and _looks_like_number(text):
        return float(text)
    if any(typing.get_origin(kind) is list for kind in kinds) and "," in text and not any(c in text for c in "[{"):
        return [part.strip() for part in text.split(",") if part.strip()]
    if any(typing.get_origin(kind) in (list, dict) for kind in kinds):
        try:
            value = yaml.safe_load(text)
        except Exception:  # as in read_yaml
            value = text
        if any(isinstance(value, typing.get_origin(kind) or kind) for kind in kinds if kind is not str):
            return value
        if str not in kinds:
            return [part.strip() for part in text.split(",") if part.strip()]
    return text


def key_type(name: str) -> str:
    """The type of a key as `--help` shows it."""
    return " | ".join(_spell(part) for part in _alternatives(_TYPES[name]) if part is not types.NoneType)


class _RecipeLoader(yaml.SafeLoader):
    """PyYAML's safe loader, but a key given twice is an error and not the last one's business."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep=deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The `key: value` lines of a file, none given twice.

    Raises:
        ConfigError: The file is absent or malformed; with the line where there is one.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder, not a recipe; photos are named by --data_root {path}") from None
    except OSError as error:
        where = "; the recipes lie in the folder recipes of clip_more's repository" if "recipes" in path.parts else ""
        raise ConfigError(f"cannot read recipe {path}: {error.strerror or error}{where}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}, line {line}: not UTF-8 text; save the file as UTF-8") from None
    try:
        values = yaml.load(text, _RecipeLoader)
    except Exception as error:  # PyYAML lets through what int(), datetime and deep nesting raise
        raise ConfigError(f"{path} is not valid YAML: {type(error).__name__}, {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold `key: value` lines")
    return values


def _checked_values(values: Mapping[str, Any], origin: str) -> dict[str, Any]:
    for name in values:
        if name not in _FIELDS:
            raise ConfigError(f"{origin}: {unknown_key(str(name))}")
    return {name: _checked(name, value, origin) for name, value in values.items()}


def _checked(name: str, value: Any, origin: str) -> Any:
    allowed = _alternatives(_TYPES[name])
    choices = _FIELDS[name].metadata["choices"]
    for kind in allowed:
        fits, converted = _fit(value, kind)
        if fits:
            if choices and converted is not None and converted not in choices:
                raise ConfigError(f"{origin}: {name} is {_shown(converted)}; choose one of {', '.join(choices)}")
            return converted
    hint = ""
    if isinstance(value, str) and _looks_like_number(value) and float in allowed:
        hint = f"; YAML reads {_shown(value)} as text: write it with a point, as 1.0e-5"
    raise ConfigError(f"{origin}: {name} is {_shown(value)}, but it must be {key_type(name)}{hint}")


def _fit(value: Any, kind: Any) -> tuple[bool, Any]:
    """Whether `value` is of `kind` (a bool is no number, an int is a float), and the value to use."""
    if kind is types.NoneType:
        return value is None, None
    if kind is float:
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) < LARGEST:
            return True, float(value)
        return isinstance(value, float), value
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < LARGEST, value
    base = typing.get_origin(kind) or kind
    if base is list:
        return isinstance(value, list) and all(isinstance(v, str) for v in value), value
    if base is dict:
        _, of = typing.get_args(kind)
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            return False, value
        found = {key: _fit(item, of) for key, item in value.items()}
        return all(fits for fits, _ in found.values()), {key: item for key, (_, item) in found.items()}
    return isinstance(value, base), value


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return (
        typing.get_args(kind)
        if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union
        else (kind,)
    )


def _shown(value: Any) -> str:
    """A value as errors show it."""
    text = hex(value) if isinstance(value, int) and abs(value) >= LARGEST else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _spell(kind: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    if kind in names:
        return names[kind]
    if typing.get_origin(kind) is list:
        return "a list of text"
    return "a mapping to numbers" if typing.get_args(kind)[1] is float else "a mapping of text"


def _looks_like_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
