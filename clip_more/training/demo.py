"""The demo: two fine-tunes of a tiny CLIP on handwritten digits, and one table."""

from __future__ import annotations

import time
from importlib import resources
from pathlib import Path
from typing import Any

from clip_more.evaluation.groups import format_table
from clip_more.evaluation.results import Results
from clip_more.recipe import load_config
from clip_more.training.loop import train

METHODS = {"bce": "BCE", "bce_more": "BCE + MORE"}


def run_demo(output_dir: str | Path) -> None:
    """Fine-tune with BCE, then with BCE + MORE; what is finished is not run again.

    The recipes are those of `recipes/digits_mlt/`, shipped with the package.
    """
    start = time.monotonic()
    print(
        "digits_mlt: scenes of one to four handwritten digits, ten classes from 700 training scenes down to 7.\n"
        "A tiny CLIP, pretrained on balanced captioned scenes, is fine-tuned on the long tail in two ways:\n"
        "on BCE, and with MORE over it.\n"
    )
    rows: list[tuple[str, dict[str, Any]]] = []
    folders: list[Path] = []
    recipes = resources.files("clip_more") / "assets" / "digits_mlt"
    for method, name in METHODS.items():
        with resources.as_file(recipes / f"{method}.yaml") as recipe:
            folder = train(load_config(recipe, {"output_dir": str(output_dir)}))
        results = Results.load(folder / "report" / "results.json")
        if not rows:
            rows.append(("zero-shot", results.maps["zero-shot"]))
        rows.append((name, results.maps["merged"]))
        folders.append(folder)
    print(f"\n{format_table(rows, baseline='zero-shot', profile=results.profile)}\n")
    for folder in folders:
        print(f"{folder / 'merged'}   {folder / 'report' / 'ap_by_frequency.png'}")
    print(f"\n{time.monotonic() - start:.0f} s. One seed of a toy: it shows the way, not which method is better.")
