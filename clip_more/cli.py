"""The command line: `clip-more VERB ...`. A door, not a room: each verb imports what it needs and calls it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from clip_more.config import SECTIONS, TrainConfig
from clip_more.recipe import key_type, load_config, parse_value


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code. Expected errors are one sentence on stderr, without a traceback."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        options.run_verb(options)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        if options.traceback:
            raise
        print(f"clip-more {options.verb}: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="clip-more", description="Fine-tune CLIP for multi-label long-tail recognition with MORE tail adapters."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    train = _verb(
        verbs,
        "train",
        _train,
        "fine-tune a CLIP by a recipe; naming the same run again resumes it",
        "clip-more train recipes/voc_mlt/bce_more.yaml --data_root ~/data --lr 2e-6\n"
        "accelerate launch --num_processes 4 -m clip_more.cli train recipes/voc_mlt/bce_more.yaml --processes 4",
    )
    _add_recipe(train)

    pretrain = _verb(
        verbs,
        "pretrain",
        _pretrain,
        "train a small CLIP from random weights on captions or label sentences",
        "clip-more pretrain --dataset digits_mlt --out runs/digits_clip",
    )
    pretrain.add_argument("--out", required=True, help="folder of the new checkpoint")

    demo = _verb(verbs, "demo", _demo, "BCE, ASL and BCE + MORE on handwritten digits, in minutes, no download")
    demo.add_argument("--output_dir", default="runs", help="folder of the demo's runs (default: runs)")
    return parser


def _verb(verbs: Any, name: str, run: Any, text: str, example: str = "") -> argparse.ArgumentParser:
    parser = verbs.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=f"examples:\n{example}" if example else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--traceback", action="store_true", help="show where in the code an error came from")
    parser.set_defaults(run_verb=run)
    return parser


_METAVARS = {"a number": "NUMBER", "a whole number": "INTEGER", "true or false": "TRUE|FALSE", "text": "TEXT"}


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    """The recipe file and one `--key` for every field of TrainConfig, in its sections."""
    parser.usage = f"{parser.prog} RECIPE.yaml [--key value ...]"
    parser.add_argument("recipe", nargs="?", help="YAML recipe; keys given as --key value go before it")
    for section in SECTIONS:
        group = parser.add_argument_group((section.__doc__ or "").rstrip("."))
        for field in fields(section):
            default = getattr(TrainConfig(), field.name)
            text = field.metadata["help"].replace("%", "%%")
            if field.metadata["choices"]:
                text += f" [{' | '.join(field.metadata['choices'])}]"
            if default not in (None, "", [], {}):
                text += f" (default: {str(default).lower() if isinstance(default, bool) else default})"
            group.add_argument(f"--{field.name}", metavar=_METAVARS.get(key_type(field.name), "VALUE"), help=text)


def _config(options: argparse.Namespace) -> TrainConfig:
    given = {field.name: getattr(options, field.name) for section in SECTIONS for field in fields(section)}
    overrides = {name: parse_value(name, text) for name, text in given.items() if text is not None}
    return load_config(options.recipe, overrides)


def _train(options: argparse.Namespace) -> None:
    config = _config(options)
    from clip_more.training.loop import train

    train(config)


def _pretrain(options: argparse.Namespace) -> None:
    raise NotImplementedError


def _demo(options: argparse.Namespace) -> None:
    from clip_more.training.demo import run_demo

    run_demo(options.output_dir)


if __name__ == "__main__":
    sys.exit(main())
