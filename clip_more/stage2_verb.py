"""The verb `stage2`: what it takes on the command line, and what it prints."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

# Keys of the recipe that say where and how photos are read; any other would make it another run.
PHOTO_KEYS = ("data_root", "workers", "worker_timeout", "mixed_precision")


def add_stage2(parser: argparse.ArgumentParser) -> None:
    """The options of `clip-more stage2`."""
    parser.add_argument("run", metavar="RUN", help="folder of a finished run, such as runs/voc_mlt-bce")
    parser.add_argument(
        "--method",
        required=True,
        choices=("crt", "ncm", "tau", "lws", "maxnorm_cb", "la_additive", "la_multiplicative"),
        help="crt: a fresh linear classifier on class-balanced sampling; ncm: nearest class mean; tau: weights over "
        "their norm to the power tau, without biases; lws: one learnt factor a class; maxnorm_cb: class-balanced loss, "
        "weight decay and MaxNorm; la_additive, la_multiplicative: logits adjusted by the class prior",
    )
    for name, text in (
        ("tau", "tau, la_additive: strength; without it 0, 0.1 .. 2 are tried on validation"),
        ("gamma", "la_multiplicative: strength; without it 0, 0.1 .. 3 are tried"),
        ("lr", "crt, lws, maxnorm_cb: learning rate over the mean squared length of the inputs; without it crt and lws "
         "try 0.1, 1 and 10, and maxnorm_cb takes 1"),
        ("weight_decay", "crt (default: 5e-4), lws (default: 0), maxnorm_cb (default: 0.1)"),
        ("beta", "maxnorm_cb: of the class-balanced loss; without it .9, .99, .999 and .9999 are tried"),
        ("thresh", "maxnorm_cb: where between the smallest and the largest norm rows are cut; without it .1, .3 .. .9 "
         "are tried"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=float, metavar="NUMBER", help=text)
    parser.add_argument("--epochs", type=int, default=10, metavar="INTEGER", help="crt, lws, maxnorm_cb (default: 10)")
    parser.add_argument(
        "--batch_size", type=int, default=64, metavar="INTEGER", help="crt, lws, maxnorm_cb (default: 64)"
    )
    parser.add_argument(
        "--inputs",
        choices=("un", "l2n", "cl2n"),
        help="ncm: features as they are, of unit length, or of unit length less the mean feature; without it all are "
        "tried",
    )
    parser.add_argument("--metric", choices=("euclidean", "cosine"), help="ncm; without it both are tried")
    parser.add_argument("--data_root", metavar="TEXT", help="where the photos are, if not where the run found them")
    parser.add_argument("--workers", metavar="INTEGER", help="processes that load photos; the run's without it")
    parser.add_argument("--worker_timeout", metavar="NUMBER", help="as of train")
    parser.add_argument(
        "--mixed_precision", choices=("no", "bf16", "fp16"), help="of the encoder; the run's without it"
    )


def stage2(options: argparse.Namespace) -> None:
    """Make, judge and write one classifier of the second stage; print its table."""
    from clip_more.recipe import parse_value
    from clip_more.stage2.options import Stage2Options
    from clip_more.stage2.run import stage2 as run_stage2
    from clip_more.stage2.text import method_text
    from clip_more.verbs import quiet

    quiet()
    own = Stage2Options(**{field.name: getattr(options, field.name) for field in fields(Stage2Options)})
    given: dict[str, Any] = {key: getattr(options, key) for key in PHOTO_KEYS}
    overrides = {key: parse_value(key, text) for key, text in given.items() if text is not None}
    print(f"\n{method_text(run_stage2(options.run, options.method, own, overrides))}")
