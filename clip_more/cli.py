"""The command line: `clip-more VERB ...`. A door, not a room: each verb imports what it needs and calls it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from clip_more.config import SECTIONS, TrainConfig
from clip_more.recipe import from_dict, key_type, load_config, parse_value, unknown_key


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code. Expected errors are one sentence on stderr, without a traceback."""
    options, unknown = _parser().parse_known_args(arguments)
    for argument in unknown:
        name = argument.removeprefix("--").partition("=")[0]
        if not argument.startswith("--"):
            what = f"{argument!r} follows no --key"
        else:
            what = f"{options.verb} takes no --{name}" if name in _KEYS else unknown_key(name)
        print(f"clip-more {options.verb}: command line: {what}", file=sys.stderr)
        return 2
    try:
        options.run_verb(options)
    except KeyboardInterrupt:
        again = (
            "; the same command goes on from the last checkpoint, if there is one" if options.verb == "train" else ""
        )
        print(f"\nstopped{again}", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        if options.traceback:
            raise
        print(f"clip-more {options.verb}: {_sentence(error)}", file=sys.stderr)
        return 1
    return 0


_KEYS = {field.name for section in SECTIONS for field in fields(section)}


def _sentence(error: Exception) -> str:
    """The error's own words; of one that a data worker passed on with its traceback, the last line."""
    text = str(error)
    if "Original Traceback" not in text:
        return text
    return text.strip().splitlines()[-1].partition(": ")[2] or text


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
        "train a small CLIP from random weights on class prompts or label sentences",
        "clip-more pretrain recipes/digits_mlt/pretrain.yaml --out runs/my_digits_clip",
    )
    _add_recipe(pretrain)
    pretrain.usage = f"{pretrain.usage} --out FOLDER"
    group = pretrain.add_argument_group("Pretraining")
    group.add_argument("--out", required=True, metavar="FOLDER", help="of the new checkpoint; must not exist yet")
    group.add_argument(
        "--objective",
        choices=("sigmoid", "contrastive"),
        default="sigmoid",
        help="pairwise sigmoid loss over class prompts, or contrastive loss on label sentences (default: sigmoid)",
    )
    group.add_argument("--steps", type=int, default=3000, help="optimiser steps (default: 3000)")
    group.add_argument("--half", action="store_true", help="save weights in fp16")

    evaluate = _verb(
        verbs,
        "evaluate",
        _evaluate,
        "judge a merged checkpoint: AP by class, mAP by group",
        "clip-more evaluate runs/voc_mlt-bce_more\n"
        "clip-more evaluate path/to/merged recipes/voc_mlt/bce.yaml --data_root ~/data",
    )
    evaluate.add_argument("checkpoint", help="a run, or a folder with multilabel.json (then a recipe must follow)")
    _add_recipe(evaluate)
    evaluate.add_argument("--json", metavar="FILE", help="write the results there too")

    zero_shot = _verb(
        verbs,
        "zero-shot",
        _zero_shot,
        "compare a run's untouched CLIP, general part and merged model",
        "clip-more zero-shot runs/voc_mlt-bce_more",
    )
    zero_shot.add_argument("checkpoint", help="a finished run")
    _add_recipe(zero_shot)
    zero_shot.add_argument("--json", metavar="FILE", help="write the results there too")

    demo = _verb(verbs, "demo", _demo, "BCE, ASL and BCE + MORE on handwritten digits, in minutes, no download")
    demo.add_argument("--output_dir", default="runs", metavar="FOLDER", help="of the demo's runs (default: runs)")
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
    before = " ".join(action.dest.upper() for action in parser._actions if not action.option_strings)
    parser.usage = f"{parser.prog} {before + ' ' if before else ''}[RECIPE.yaml] [--key value ...]"
    parser.add_argument("recipe", nargs="?", help="YAML recipe; every --key value below overrides it")
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


def _overrides(options: argparse.Namespace) -> dict[str, Any]:
    given = {field.name: getattr(options, field.name) for section in SECTIONS for field in fields(section)}
    return {name: parse_value(name, text) for name, text in given.items() if text is not None}


def _train(options: argparse.Namespace) -> None:
    config = load_config(options.recipe, _overrides(options))
    _quiet()
    from clip_more.evaluation.results import Results
    from clip_more.training.loop import train

    folder = train(config)
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"\n{Results.load(folder / 'report' / 'results.json').table()}\n")
        print(f"merged checkpoint: {folder / 'merged'}\nreport:            {folder / 'report'}")


def _pretrain(options: argparse.Namespace) -> None:
    config = load_config(options.recipe, _overrides(options))
    _quiet()
    from clip_more.training.pretrain import pretrain_from_recipe

    pretrain_from_recipe(config, options.out, objective=options.objective, steps=options.steps, half=options.half)


def _evaluate(options: argparse.Namespace) -> None:
    _judge(options, side_by_side=False)


def _zero_shot(options: argparse.Namespace) -> None:
    _judge(options, side_by_side=True)


def _judge(options: argparse.Namespace, side_by_side: bool) -> None:
    config, folder = _of_checkpoint(options, side_by_side)
    _quiet()
    from clip_more.data.load import load_data
    from clip_more.evaluation.judge import judge_checkpoint, judge_run
    from clip_more.training.processes import make_accelerator

    accelerator = make_accelerator(config)
    data = load_data(config)
    if side_by_side:
        results = judge_run(folder, config, data, accelerator)
    else:
        results, _ = judge_checkpoint(folder, config, data, accelerator)
    accelerator.print(results.table())
    if options.json and accelerator.is_main_process:
        results.save(options.json)


def _of_checkpoint(options: argparse.Namespace, side_by_side: bool) -> tuple[TrainConfig, Path]:
    """The recipe of a run (or the one given) with overrides, and the folder to judge."""
    from clip_more.training.run_folder import read_config

    folder = Path(options.checkpoint)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    recipe = folder / "config.yaml"
    if recipe.is_file():
        if not (folder / "merged" / "multilabel.json").is_file():
            raise ValueError(f"{folder} is not finished: it has no merged checkpoint yet; train it to its end first")
        if options.recipe:
            raise ValueError(f"{folder} is a run and has its own recipe; leave {options.recipe} out")
        values = read_config(folder).to_dict() | {"processes": None, "trackers": []} | _overrides(options)
        return from_dict(values, origin=str(recipe)), folder if side_by_side else folder / "merged"
    if side_by_side or not options.recipe:
        raise ValueError(f"{folder} is no run (it has no config.yaml)" + ("" if side_by_side else "; add a recipe"))
    return load_config(options.recipe, _overrides(options)), folder


def _demo(options: argparse.Namespace) -> None:
    _quiet()
    from clip_more.training.demo import run_demo

    run_demo(options.output_dir)


def _quiet() -> None:
    """Our own progress bars are enough: transformers draws one for every file it reads or writes."""
    from transformers.utils import logging

    logging.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(main())
