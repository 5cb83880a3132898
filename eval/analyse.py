"""Analyse a finished run: features, classifier, tail, mechanism test and diagnosis, as JSON and as a page of figures.

python eval/analyse.py runs/voc_mlt-bce_more
python eval/analyse.py runs/voc_mlt-bce_more --split test --baseline runs/voc_mlt-bce

The files are measures_<split>.json and page_<split>.png in <run>/analysis; docs/analysis.md says what figures mean.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Write both files and print what the run was diagnosed with; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--out", type=Path, help="folder of the two files (default: analysis/ in the run)")
    parser.add_argument(
        "--split", choices=("train", "test"), default="train", help="photos whose features are measured"
    )
    parser.add_argument("--baseline", type=Path, help="another run on the same test photos to compare groups with")
    parser.add_argument("--batch_size", type=int, help="photos at a time (default: the run's)")
    parser.add_argument("--workers", type=int, help="processes that load photos (default: the run's)")
    parser.add_argument("--data_root", help="folder of the data set, where it has moved")
    options = parser.parse_args(arguments)
    for name in ("batch_size", "workers"):
        if (value := getattr(options, name)) is not None and value < (1 if name == "batch_size" else 0):
            parser.error(f"--{name} is {value}, which is too few")
    from transformers.utils.logging import disable_progress_bar

    from clip_more.analysis.page import TITLES, mechanism_sentences
    from clip_more.analysis.run import analyse_run
    from clip_more.training.processes import make_accelerator
    from clip_more.training.run_folder import read_config

    disable_progress_bar()
    try:
        given = {name: getattr(options, name) for name in ("batch_size", "workers", "data_root")}
        config = replace(
            read_config(options.run), **{name: value for name, value in given.items() if value is not None}
        )
        accelerator = make_accelerator(config)
        found = analyse_run(
            options.run, accelerator, config=config, out=options.out, split=options.split, baseline=options.baseline
        )
    except (ValueError, OSError) as error:
        print(f"analyse: {error}", file=sys.stderr)
        return 2
    for sentence in mechanism_sentences(found["mechanism"]) if "mechanism" in found else ():
        accelerator.print(sentence)
    for finding in found["diagnosis"]:
        keys = f" Change: {', '.join(finding['keys'])}." if finding["keys"] else ""
        accelerator.print(f"{TITLES[finding['sign']]}: {finding['text']}{keys}")
    accelerator.print(
        f"\n{(options.out or options.run / 'analysis')}: measures_{options.split}.json, page_{options.split}.png"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
