"""What the verbs of the command line share: a parser of their own, and a `--key` for every key of a recipe."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from clip_more.config import SECTIONS, DataConfig, EvaluationConfig, TrainConfig
from clip_more.recipe import key_type

# Sections that `--help` shows; every verb with a recipe takes all keys.
DATA = (DataConfig,)
JUDGE = (DataConfig, EvaluationConfig)


def add_verb(choices: Any, name: str, run: Any, text: str, example: str = "") -> argparse.ArgumentParser:
    """A parser among `choices`; `run` is called with what it reads, `text` and `example` are its help."""
    parser = choices.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ("" if text.endswith("?") else "."),
        epilog=f"examples:\n{example}" if example else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--traceback", action="store_true", help="show where in the code an error came from")
    parser.set_defaults(run_verb=run)
    return parser


_METAVARS = {"a number": "NUMBER", "a whole number": "INTEGER", "true or false": "TRUE|FALSE", "text": "TEXT"}


def add_recipe(parser: argparse.ArgumentParser, shown: Sequence[type] = SECTIONS, own_keys: Sequence[str] = ()) -> None:
    """The recipe file and one `--key` for every field of TrainConfig.

    Args:
        parser: Of a verb, with its other options.
        shown: Sections that `--help` shows.
        own_keys: Keys that it shows first, whatever their section.
    """
    before = " ".join(action.dest.upper() for action in parser._actions if not action.option_strings)
    own = " ".join(
        f"--{action.dest} {action.metavar}" for action in parser._actions if action.required and action.option_strings
    )
    parser.usage = (
        f"{parser.prog} {before + ' ' if before else ''}[RECIPE.yaml] {own + ' ' if own else ''}[--key value ...]"
    )
    parser.add_argument("recipe", nargs="?", help="YAML recipe; every --key value below overrides it")
    first = parser.add_argument_group("Photos and speed") if own_keys else parser
    for section in SECTIONS:
        group = parser.add_argument_group((section.__doc__ or "").rstrip(".")) if section in shown else parser
        for field in fields(section):
            default = getattr(TrainConfig(), field.name)
            text = field.metadata["help"].replace("%", "%%")
            if field.metadata["choices"]:
                text += f" [{' | '.join(field.metadata['choices'])}]"
            if default not in (None, "", [], {}):
                text += f" (default: {str(default).lower() if isinstance(default, bool) else default})"
            metavar = _METAVARS.get(key_type(field.name), "VALUE")
            help_text = text if section in shown or field.name in own_keys else argparse.SUPPRESS
            place = first if field.name in own_keys else group
            place.add_argument(f"--{field.name}", metavar=metavar, help=help_text)
