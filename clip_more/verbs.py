"""What each verb of the command line does: options in, one call into the rooms, a few lines printed."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_more.config import SECTIONS, ConfigError, TrainConfig
from clip_more.recipe import from_dict, load_config, parse_value
from clip_more.training.signals import StopRequest

if TYPE_CHECKING:
    from clip_more.data.paths import Skipped


def train(options: argparse.Namespace) -> None:
    """Train a run to its end; print its table."""
    config = load_config(options.recipe, overrides(options))
    with StopRequest():  # a scheduler's signal ends the imports, too, with the code of a stopped run
        quiet()
        from clip_more.evaluation.results import Results
        from clip_more.training.loop import train as train_run

        folder = train_run(config)
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"\n{Results.load(folder / 'report' / 'results.json').table()}\n")
        print(f"merged checkpoint: {folder / 'merged'}\nreport:            {folder / 'report'}")


def pretrain(options: argparse.Namespace) -> None:
    """Train a small CLIP from random weights."""
    config = load_config(options.recipe, overrides(options))
    quiet()
    from clip_more.training.pretrain import pretrain_from_recipe

    pretrain_from_recipe(
        config, options.out, objective=options.objective, steps=options.steps, batch_size=options.pretrain_batch,
        lr=options.pretrain_lr, half=options.half,
    )  # fmt: skip


def demo(options: argparse.Namespace) -> None:
    """Three runs on digits, one table."""
    quiet()
    from clip_more.training.demo import run_demo

    run_demo(options.output_dir)


def stats(options: argparse.Namespace) -> None:
    """Class statistics; photos need not be there."""
    config = load_config(options.recipe, {"missing": "allow"} | overrides(options))
    from clip_more.data.load import read_data
    from clip_more.data.paths import Skipped, absent_photos, write_skipped
    from clip_more.data.statistics import class_statistics

    data = read_data(config)
    statistics = class_statistics(data.train, data.test, data.profile)
    absent = absent_photos(data.train) + absent_photos(data.test)
    if options.out:
        from clip_more.evaluation.profile_plots import plot_profile

        folder = Path(options.out)
        statistics.save(folder / "statistics.json")
        plot_profile(statistics, folder / "class_profile.png", title=config.dataset_name or config.dataset)
        if absent:
            write_skipped([Skipped(path, "there is no such file") for path in absent], folder / "absent.csv")
    print(statistics.table())
    if "test" in data.facts:
        print(f"\nno test split in the data: test is {data.facts['test']}")
    if absent:
        photos = len(data.train) + len(data.test)
        listed = f"all of them: {Path(options.out) / 'absent.csv'}" if options.out else "--out FOLDER lists all"
        print(
            f"\nphotos absent: {len(absent):,} of {photos:,}, such as {absent[0]}\n"
            f"train refuses them; --missing skip goes on without them; {listed}"
        )
    _say_skipped(data.skipped)
    if options.out:
        print(f"\nstatistics and figure: {options.out}")


def prepare(options: argparse.Namespace) -> None:
    """Write a prepared data set, or go on with it."""
    config = load_config(options.recipe, overrides(options))
    from clip_more.data.prepare import prepare as prepare_data

    report = prepare_data(
        config, options.out, short_side=options.short_side, store=options.store, workers=config.workers
    )
    print(report.text())


def long_tail(options: argparse.Namespace) -> None:
    """Write the list files of a long-tailed subset."""
    config = load_config(options.recipe, overrides(options))
    if config.long_tail == "none":
        raise ConfigError("long_tail is none; choose --long_tail exponential or --long_tail pareto")
    if (Path(options.out) / "train.txt").exists():
        raise ConfigError(f"{options.out} holds lists already; name another folder with --out")
    from clip_more.data.load import read_data
    from clip_more.data.longtail import write_lists
    from clip_more.data.photos import undecoded
    from clip_more.data.statistics import class_statistics

    data = read_data(config)
    whole = data.facts["photos_before_long_tail"]
    in_memory = undecoded(data.train)[0]["image"]["bytes"] is not None
    root = Path(options.out if in_memory or not config.data_root else config.data_root).expanduser()
    written = write_lists(data.train, data.test, Path(options.out), root)
    print(class_statistics(data.train, data.test, data.profile).table(), end="\n\n")
    _say_skipped(data.skipped)
    cut = f"{len(data.train):,} of {whole:,} train photos were kept"
    print(cut if len(data.train) < whole else f"nothing was cut: {cut}; choose a larger imbalance")
    print("\n".join(f"{name}: {path}" for name, path in written.items()))
    names = {"train": "train_list", "test": "test_list", "classes": "class_file"}
    keys = " ".join(f"--{names[name]} {path.resolve()}" for name, path in written.items())
    print(f"train on it with --dataset lists --data_root {root} {keys}")


def evaluate(options: argparse.Namespace) -> None:
    """Judge one exported classifier on test."""
    config, folder = of_checkpoint(options)
    if folder is None or not folder.is_dir():
        raise ValueError(f"there is no folder {options.checkpoint}")
    quiet()
    from clip_more.data.load import load_data
    from clip_more.evaluation.judge import judge_checkpoint
    from clip_more.evaluation.published import published_table
    from clip_more.evaluation.scores import save_scores
    from clip_more.training.processes import make_accelerator
    from clip_more.training.run_folder import read_test_ids

    accelerator = make_accelerator(config)
    folder = folder / "merged" if (folder / "config.yaml").is_file() else folder
    data = load_data(config, read_test_ids(folder))
    results, predictions = judge_checkpoint(folder, config, data, accelerator)
    accelerator.print(results.table())
    if options.published:
        accelerator.print(f"\n{published_table(options.published, results)}")
    if options.json and accelerator.is_main_process:
        if config.save_scores:
            file = Path(options.json).with_suffix(".safetensors")
            scores, image_ids = {folder.name: predictions.scores}, list(data.test["image_id"])
            results.scores = save_scores(file, scores, predictions.targets, predictions.known, image_ids)
        results.save(options.json)


def zero_shot(options: argparse.Namespace) -> None:
    """A run's models by prompts; with any of its options, the full comparison."""
    config, folder = of_checkpoint(options)
    quiet()
    from clip_more.data.load import load_data, read_data
    from clip_more.evaluation.judge import judge_run
    from clip_more.evaluation.zero_shot_report import zero_shot_report
    from clip_more.training.processes import make_accelerator
    from clip_more.training.run_folder import check_same_held_out, read_test_ids

    run = folder if folder is not None and (folder / "config.yaml").is_file() else None
    if run is not None and options.on == "held_out":
        check_same_held_out(config, run)
    accelerator = make_accelerator(config)
    test_ids = None if folder is None else read_test_ids(folder)
    data = load_data(config, test_ids)
    full = any((options.others, options.prompts, options.scores, options.alphas, options.unseen, options.out))
    if run is not None and not full and options.on == "test":
        results = judge_run(run, config, data, accelerator)
        accelerator.print(results.table())
        if options.json and accelerator.is_main_process:
            results.save(options.json)
        return
    prompts: list[str | list[str]] = [
        config.templates if part == "recipe" else part for part in _parts(options.prompts)
    ] or [config.templates]
    unseen = _names(options.unseen)
    wider = replace(config, classes=[*data.profile.names, *unseen], class_freq=None, class_split=None)
    text = zero_shot_report(
        [options.checkpoint, *_parts(options.others)],
        config,
        data,
        accelerator,
        prompt_sets=prompts,
        scores=_parts(options.scores) or [config.score],
        alphas=_numbers(options.alphas),
        unseen=read_data(wider, test_ids) if unseen else None,
        on=options.on,
        out=Path(options.out) if options.out else None,
        file=Path(options.json) if options.json else None,
    )
    accelerator.print(text)


def _parts(text: str | None) -> list[str]:
    """What stands between commas; between semicolons where there is one, so that a part may hold commas."""
    text = text or ""
    return [part.strip() for part in text.split(";" if ";" in text else ",") if part.strip()]


def _numbers(text: str | None) -> list[float]:
    try:
        return [float(part) for part in _parts(text)]
    except ValueError:
        raise ValueError(f"--alphas is {text!r}; give numbers from 0 to 1, as in 0,0.25,0.5,0.75,1") from None


def _names(text: str | None) -> list[str]:
    """Class names: those of a file, or given with commas (or semicolons)."""
    from clip_more.data.lists import read_classes

    return read_classes(text) if text and Path(text).is_file() else _parts(text)


def runs(options: argparse.Namespace) -> None:
    """List the runs of a folder."""
    from clip_more.files import written_aside
    from clip_more.training.run_list import list_runs, runs_table

    states = list_runs(Path(options.folder))
    print(runs_table(states))
    if options.json:
        with written_aside(options.json) as aside:
            aside.write_text(json.dumps([state.to_dict() for state in states], indent=1) + "\n", encoding="utf-8")


def compare(options: argparse.Namespace) -> None:
    """Paired difference of two results, by group."""
    from clip_more.evaluation.compare import compare as compare_results

    rows = options.rows.split(",") if options.rows else [_own_row(options.first), _own_row(options.second)]
    if len(rows) != 2:
        raise ValueError(f"--rows is {options.rows!r}; give one row of each result, as in merged,merged")
    comparison = compare_results(
        _results_file(options.first), _results_file(options.second), rows=(rows[0], rows[1]), draws=options.draws
    )
    print(comparison.table())
    if options.json:
        comparison.save(options.json)


def _own_row(name: str) -> str:
    """The row of a result that is its model: `merged` of a run, and the method's of a second stage."""
    folder = Path(name) if Path(name).is_dir() else Path(name).parent
    return folder.name if folder.parent.name == "stage2" else "merged"


def _results_file(name: str) -> Path:
    path = Path(name)
    if path.is_dir():
        path = path / "results.json" if (path / "results.json").is_file() else path / "report" / "results.json"
    if not path.is_file():
        raise ValueError(f"{name} is neither a finished run nor a results file (there is no {path})")
    return path


def of_checkpoint(options: argparse.Namespace) -> tuple[TrainConfig, Path | None]:
    """The recipe of a run (or the one given) with overrides, and the folder to judge, None where it is no folder."""
    from clip_more.training.run_folder import read_config

    folder = Path(options.checkpoint)
    if not folder.is_dir() and not options.recipe:
        raise ValueError(f"there is no folder {folder}")
    run = folder.resolve().parents[1] if folder.resolve().parent.name == "stage2" and not options.recipe else folder
    recipe = run / "config.yaml"
    if recipe.is_file():
        if not (run / "merged").is_dir():
            raise ValueError(f"{folder} is not finished: it has no merged checkpoint yet; train it to its end first")
        if options.recipe:
            raise ValueError(f"{folder} is a run and has its own recipe; leave {options.recipe} out")
        of_training: dict[str, Any] = {"processes": None, "distribution": None, "trackers": []}
        values = read_config(run).to_dict() | of_training | overrides(options)
        return from_dict(values, origin=str(recipe)), folder
    if not options.recipe:
        raise ValueError(f"{folder} is no run (it has no config.yaml); add a recipe")
    return load_config(options.recipe, overrides(options)), folder if folder.is_dir() else None


def overrides(options: argparse.Namespace) -> dict[str, Any]:
    """The keys that were given on the command line."""
    given = {field.name: getattr(options, field.name) for section in SECTIONS for field in fields(section)}
    return {name: parse_value(name, text) for name, text in given.items() if text is not None}


def _say_skipped(skipped: list[Skipped]) -> None:
    if skipped:
        first = ", ".join(photo.image_id for photo in skipped[:3])
        print(f"skipped {len(skipped)} photos that are listed and absent: {first}{', ...' if len(skipped) > 3 else ''}")


def quiet() -> None:
    """Our own progress bars are enough: transformers draws one for every file it reads or writes."""
    from transformers.utils import logging

    logging.disable_progress_bar()
