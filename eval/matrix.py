"""Every loss, sampler and second stage, with and without MORE, on small tasks: runs, tables and figures.

python eval/matrix.py                                        # all beds, three seeds; goes on where it was stopped
python eval/matrix.py --bed digits_lt --rows ce ldam --seeds 1
python eval/matrix.py --table --write docs/methods_matrix.md # run nothing; put the tables between its markers

What it needs, and how the tables are read: docs/methods_matrix.md.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported

from clip_more.config import ConfigError
from matrix_jobs import Job, Record, append_record, read_records, spent
from matrix_progress import run_shown
from matrix_rows import BEDS, ROWS, SHORT_SIDE, TASKS, Row, photos_config, photos_folder, run_config
from matrix_table import KINDS, MORE, bed_tables, fill, read_lines

EXIT_STOPPED, EXIT_FAILED = 75, 1
Jobs = dict[tuple[str, str, str, int], Job]


def main(arguments: list[str] | None = None) -> int:
    """Run what is left, then make tables and figures of what is there; returns the exit code."""
    options = _options(arguments)
    out: Path = options.out
    jobs = make_jobs(out, range(options.seeds), options.epochs, options.max_steps)
    log, records = out / "runs.jsonl", []
    try:
        chosen = {key: job for key, job in jobs.items() if key[0] in options.bed and _named(key, options.rows)}
        for key, job in jobs.items():
            if key[0] in options.bed:
                job.check()
        left = [] if options.table else [job for job in chosen.values() if not job.done()]
        stopped = _run(left, len(chosen), out, options) if left else False
        records = read_records(log)
        tables = _tables(options.bed, jobs, records, options.seeds)
        for bed, text in tables.items():
            print(f"\n{bed}\n\n{text}")
        if options.write:
            options.write.write_text(fill(options.write.read_text(), tables, options.write))
        _figures(options.bed, jobs, records, out)
    except (ConfigError, OSError, ValueError) as error:
        print(f"matrix.py: {error}", file=sys.stderr)
        return 2
    last = {record["run"]: record for record in records}
    unfinished = [job.name for job in chosen.values() if not job.done()]
    failed = [name for name in unfinished if last.get(name, {}).get("state") == "failed"]
    print(f"\n{_time(records, jobs, options.bed)}; figures: {out}/<bed>.png")
    for name in failed:
        print(f"failed: {name}: {'; '.join(f'{part}: {why}' for part, why in last[name]['failures'].items())}")
    if stopped:
        print("stopped; the same command goes on")
        return EXIT_STOPPED
    return EXIT_FAILED if failed else 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/matrix"), help="folder of all (default: %(default)s)")
    parser.add_argument("--bed", nargs="+", choices=BEDS, default=list(BEDS), help="tables to make (default: all)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ... (default: %(default)s)")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="run these alone, such as ce or ce-class_balanced")
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each (default: %(default)s)")
    epochs = ", ".join(f"{name} {task.epochs:g}" for name, task in TASKS.items())
    parser.add_argument("--epochs", type=float, help=f"of every run (default: {epochs})")
    parser.add_argument("--max_steps", type=int, help="stop each run after so many steps, to try the whole out")
    parser.add_argument("--data_root", help="folder that holds voc2012_lt_tiny/ (default: that of CLIP_MORE_TEST_DATA)")
    parser.add_argument("--table", action="store_true", help="run nothing: tables and figures of what is there")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables between the markers of a document")
    options = parser.parse_args(arguments)
    if options.seeds < 1 or options.jobs < 1:
        parser.error("--seeds and --jobs must be 1 or more")
    known = {row.run for row in ROWS if row.bed in options.bed}
    if unknown := sorted(set(options.rows or ()) - known):
        parser.error(f"--rows: there is no {unknown[0]} in {', '.join(options.bed)}; rows: {', '.join(sorted(known))}")
    return options


def make_jobs(out: Path, seeds: Sequence[int], epochs: float | None = None, max_steps: int | None = None) -> Jobs:
    """All runs by bed, run name of the row, kind and seed; one seed of everything comes before the next."""
    jobs: Jobs = {}
    for seed in seeds:
        for row in ROWS:
            for kind in KINDS:
                config = run_config(row, kind == MORE, seed, out, epochs=epochs, max_steps=max_steps)
                seconds = TASKS[row.task].seconds[kind == MORE] + 3.0 * len(row.methods)
                jobs[row.bed, row.run, kind, seed] = Job(config, row.methods, seconds)
    return jobs


def _named(key: tuple[str, str, str, int], names: Sequence[str] | None) -> bool:
    return names is None or key[1] in names


def _run(left: list[Job], chosen: int, out: Path, options: argparse.Namespace) -> bool:
    """Do what is left; whether it was stopped before the end."""
    prepare_photos(out, sorted({job.config.dataset_name for job in left}), options.data_root)
    return run_shown(left, chosen, options.jobs, lambda record: append_record(out / "runs.jsonl", record))


def prepare_photos(out: Path, tasks: Sequence[str], data_root: str | None) -> None:
    """Draw or decode the photos of these tasks once, for all runs."""
    from clip_more.data.prepare import prepare

    for task in tasks:
        report = prepare(photos_config(task, data_root), photos_folder(out, task), short_side=SHORT_SIDE)
        if not report.was_complete:
            print(f"{task}: {report.text().splitlines()[0]}", flush=True)


def _of_bed(bed: str, jobs: Jobs) -> tuple[list[Row], dict[tuple[str, str, int], Job]]:
    return [row for row in ROWS if row.bed == bed], {key[1:]: job for key, job in jobs.items() if key[0] == bed}


def _tables(beds: Sequence[str], jobs: Jobs, records: Sequence[Record], seeds: int) -> dict[str, str]:
    found = {}
    for bed in beds:
        rows, own = _of_bed(bed, jobs)
        text = bed_tables(read_lines(rows, own, records))
        found[bed] = f"{_caption(bed, rows, own, seeds)}\n\n{text}\n\n{_time(records, jobs, [bed])}."
    return found


def _caption(bed: str, rows: Sequence[Row], own: dict[tuple[str, str, int], Job], seeds: int) -> str:
    """What the figures of a bed depend on."""
    parts = []
    for task in dict.fromkeys(row.task for row in rows):
        config = next(job.config for job in own.values() if job.config.dataset_name == task)
        recipes = sorted({row.recipe for row in rows if row.task == task})
        named = f"`recipes/{recipes[0]}`" if len(recipes) == 1 else f"The recipes of `recipes/{task}/`"
        length = f"{config.max_steps} steps" if config.max_steps else f"{config.epochs:g} epochs"
        rates = f"batch_size {config.batch_size}, lr {config.lr:g}, lr_head {config.lr_head:g}"
        parts.append(f"{named} with {length} ({rates}), with MORE {_keys(TASKS[task].more)}.")
    for row in rows:
        if others := {key: value for key, value in row.values.items() if key not in ("loss", "sampler")}:
            parts.append(f"{row.part if row.methods else row.label}: {_keys(others)}.")
    many = f"seeds 0 to {seeds - 1}: mean ± standard deviation, x 100" if seeds > 1 else "seed 0, x 100"
    return " ".join([*parts, f"Test photos, {many}."])


def _keys(values: dict[str, object]) -> str:
    return ", ".join(f"`{key}: {value}`" for key, value in values.items())


def _time(records: Sequence[Record], jobs: Jobs, beds: Sequence[str]) -> str:
    own = {job.name: job.done() for key, job in jobs.items() if key[0] in beds}
    together, clock = spent(record for record in records if record["run"] in own)
    return (
        f"{sum(own.values())} of {len(own)} runs: {together / 60:.1f} min together, {clock / 60:.1f} min by the clock"
    )


def _figures(beds: Sequence[str], jobs: Jobs, records: Sequence[Record], out: Path) -> None:
    from matrix_figure import draw_bed

    for bed in beds:
        rows, own = _of_bed(bed, jobs)
        try:
            draw_bed(read_lines(rows, own, records), out / f"{bed}.png", f"{bed}: every method, plain and with MORE")
        except (ImportError, ValueError) as error:  # no reason to lose the tables
            print(f"no figure of {bed}: {error}")


if __name__ == "__main__":
    sys.exit(main())
