"""The command line: `clip-more VERB ...`. A door, not a room: it reads options; `verbs.py` calls the rooms."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from clip_more import __version__, verbs
from clip_more.config import SECTIONS, DataConfig, EvaluationConfig, TrainConfig
from clip_more.recipe import key_type, unknown_key
from clip_more.training.signals import EXIT_STOPPED, Stopped


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code. Expected errors are one sentence on stderr, without a traceback."""
    warnings.showwarning = _note  # type: ignore[assignment]
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
    except Stopped as stop:
        if int(os.environ.get("RANK", 0)) == 0:
            print(f"stopped by {stop}; the same command goes on from there", file=sys.stderr)
        return EXIT_STOPPED
    except BrokenPipeError:  # whoever read our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, RuntimeError) as error:
        if options.traceback:
            raise
        print(f"clip-more {options.verb}: {_sentence(error)}", file=sys.stderr)
        return 1
    return 0


_KEYS = {field.name for section in SECTIONS for field in fields(section)}


def _note(message: Warning | str, category: type[Warning], *place: Any) -> None:
    """Our own warnings as sentences; those of libraries are for developers."""
    if issubclass(category, UserWarning):
        print(f"note: {message}", file=sys.stderr)


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
    parser.add_argument("--version", action="version", version=f"clip-more {__version__}")
    choices = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    train = _verb(
        choices,
        "train",
        verbs.train,
        "fine-tune a CLIP by a recipe; naming the same run again resumes it",
        "clip-more train recipes/voc_mlt/bce_more.yaml --data_root ~/data --lr 2e-6\n"
        "accelerate launch --num_processes 4 -m clip_more.cli train recipes/voc_mlt/bce_more.yaml --processes 4",
    )
    _add_recipe(train)

    stats = _verb(
        choices,
        "stats",
        verbs.stats,
        "print and plot the class profile of a data set: counts, groups, imbalance, labels a photo, co-occurrence",
        "clip-more stats recipes/voc_mlt/bce.yaml --data_root ~/data --out profile\n"
        "clip-more stats --dataset folder --data_root ~/photos",
    )
    stats.add_argument("--out", metavar="FOLDER", help="write statistics.json and class_profile.png there")
    _add_recipe(stats, _DATA)

    prepare = _verb(
        choices,
        "prepare",
        verbs.prepare,
        "decode, check and resize all photos of a data set once, into an Arrow data set that loads fast",
        "clip-more prepare recipes/coco/bce.yaml --data_root ~/coco --out ~/coco_256\n"
        "clip-more train recipes/coco/bce.yaml --dataset prepared --data_root ~/coco_256",
    )
    prepare.add_argument("--out", required=True, metavar="FOLDER", help="of the prepared set; naming it again goes on")
    prepare.add_argument(
        "--short_side", type=int, default=256, metavar="PIXELS", help="shorter side of a stored photo (default: 256)"
    )
    prepare.add_argument(
        "--store",
        choices=("raw", "jpeg"),
        default="raw",
        help="raw pixels, the fastest, about 265 kB a photo; or JPEG of quality 95, about a seventh (default: raw)",
    )
    _add_recipe(prepare, _DATA)

    long_tail = _verb(
        choices,
        "long-tail",
        verbs.long_tail,
        "subsample a data set to a long tail, as list files that anybody can use",
        "clip-more long-tail recipes/coco/bce.yaml --data_root ~/coco --long_tail pareto --out lists\n"
        "clip-more long-tail --dataset cifar100 --data_root ~/cifar --task single_label --long_tail exponential "
        "--out lists",
    )
    long_tail.add_argument("--out", required=True, metavar="FOLDER", help="of train.txt, test.txt and classes.txt")
    _add_recipe(long_tail, _DATA)

    evaluate = _verb(
        choices,
        "evaluate",
        verbs.evaluate,
        "judge a merged checkpoint: AP by class, mAP by group",
        "clip-more evaluate runs/voc_mlt-bce_more --published voc_mlt\n"
        "clip-more evaluate path/to/merged recipes/voc_mlt/bce.yaml --data_root ~/data --score softmax",
    )
    evaluate.add_argument("checkpoint", help="a run, or a folder with multilabel.json (then a recipe must follow)")
    evaluate.add_argument("--published", choices=("voc_mlt", "coco_mlt"), help="print published figures beside")
    evaluate.add_argument("--json", metavar="FILE", help="write the results there too")
    _add_recipe(evaluate, _JUDGE)

    zero_shot = _verb(
        choices,
        "zero-shot",
        verbs.zero_shot,
        "compare models by prompts: untouched CLIP, general part, merged model, others; prompt sets; unseen classes",
        "clip-more zero-shot runs/voc_mlt-bce_more\n"
        "clip-more zero-shot runs/voc_mlt-bce_more --prompts names,plain,clip7 --scores logit,softmax --out report\n"
        "clip-more zero-shot runs/voc_mlt-bce_more --alphas 0,0.25,0.5,0.75,1 --out report\n"
        "clip-more zero-shot openai/clip-vit-base-patch16 recipes/voc_mlt/bce.yaml --data_root ~/data",
    )
    zero_shot.add_argument("checkpoint", help="a finished run, or any CLIP (then a recipe must follow)")
    zero_shot.add_argument("--others", metavar="MODEL,...", help="more CLIPs to set beside it: folders or Hub ids")
    zero_shot.add_argument(
        "--prompts",
        metavar="SET,...",
        help="prompt sets: recipe, names, plain, ensemble, clip7, clip80, files of templates, or templates with {}; "
        "with a ; between them, or at the end, where one holds a comma; the first also serves --alphas and --unseen "
        "(default: recipe)",
    )
    zero_shot.add_argument("--scores", metavar="SCORE,...", help="logit, sigmoid, softmax; the recipe's own without it")
    zero_shot.add_argument(
        "--alphas", metavar="A,...", help="WiSE-FT: interpolate untouched and merged weights at these points"
    )
    zero_shot.add_argument(
        "--unseen", metavar="NAME,...|FILE", help="classes that training never saw: mAP before and after"
    )
    zero_shot.add_argument(
        "--on",
        choices=("test", "held_out"),
        default="test",
        help="photos judged: test, or those the run held out of train, to choose alpha or prompts on (default: test)",
    )
    zero_shot.add_argument("--out", metavar="FOLDER", help="write the comparison and its figures there")
    zero_shot.add_argument("--json", metavar="FILE", help="write the numbers alone there")
    _add_recipe(zero_shot, _JUDGE)

    runs = _verb(
        choices,
        "runs",
        verbs.runs,
        "list runs: finished, running, stopped, interrupted, failed or damaged, how far, and their mAP by group",
        "clip-more runs\nclip-more runs /data/runs --json runs.json",
    )
    runs.add_argument("folder", nargs="?", default="runs", help="that holds the runs (default: runs)")
    runs.add_argument("--json", metavar="FILE", help="write the list there too")

    compare = _verb(
        choices,
        "compare",
        verbs.compare,
        "set two results side by side, photo by photo: is the difference of a group more than noise?",
        "clip-more compare runs/voc_mlt-bce runs/voc_mlt-bce_more",
    )
    compare.add_argument("first", help="a run or a results.json: what the other is compared with")
    compare.add_argument("second", help="a run or a results.json")
    compare.add_argument(
        "--rows",
        default="merged,merged",
        metavar="ROW,ROW",
        help="rows of the two results: zero-shot, general, merged (default: merged,merged)",
    )
    compare.add_argument("--draws", type=int, default=1000, help="resamples of the test photos (default: 1000)")
    compare.add_argument("--json", metavar="FILE", help="write the comparison there")

    pretrain = _verb(
        choices,
        "pretrain",
        verbs.pretrain,
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

    demo = _verb(choices, "demo", verbs.demo, "BCE, ASL and BCE + MORE on handwritten digits, in minutes, no download")
    demo.add_argument("--output_dir", default="runs", metavar="FOLDER", help="of the demo's runs (default: runs)")
    return parser


# Sections that `--help` shows; every verb with a recipe takes all keys.
_DATA = (DataConfig,)
_JUDGE = (DataConfig, EvaluationConfig)


def _verb(choices: Any, name: str, run: Any, text: str, example: str = "") -> argparse.ArgumentParser:
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


def _add_recipe(parser: argparse.ArgumentParser, shown: Sequence[type] = SECTIONS) -> None:
    """The recipe file and one `--key` for every field of TrainConfig; those of other sections stay out of the help."""
    before = " ".join(action.dest.upper() for action in parser._actions if not action.option_strings)
    own = " ".join(
        f"--{action.dest} {action.metavar}" for action in parser._actions if action.required and action.option_strings
    )
    parser.usage = (
        f"{parser.prog} {before + ' ' if before else ''}[RECIPE.yaml] {own + ' ' if own else ''}[--key value ...]"
    )
    parser.add_argument("recipe", nargs="?", help="YAML recipe; every --key value below overrides it")
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
            help_text = text if section in shown else argparse.SUPPRESS
            group.add_argument(f"--{field.name}", metavar=metavar, help=help_text)


if __name__ == "__main__":
    sys.exit(main())
