"""Sweeps: arms x seeds trained and compared, one JSON line a finished run.

python eval/ablate.py eval/sweeps/strength.yaml                # goes on where it was stopped
python eval/ablate.py eval/sweeps/*.yaml --seeds 1 --jobs 2
python eval/ablate.py eval/sweeps/strength.yaml --table        # run nothing: table and figures of what is there

Lines go to docs/evidence/<sweep>.jsonl, and from them come <sweep>.results.json and <sweep>.md beside them, and figures
in <out>/figures. --table only reads lines, and so may look on while another process adds them. A run whose line is
there, in the file of any sweep, is not run again, even where its folder is gone. How a sweep is written:
eval/ablate_sweep.py.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported

from ablate_beds import prepare_arms
from ablate_plan import Planned, plan, settle, take_over
from ablate_records import differing, read_lines
from ablate_sweep import Sweep, read_sweep, with_keys
from clip_more.config import ConfigError
from clip_more.files import written_aside
from matrix_jobs import Record, append_record
from matrix_progress import run_shown
from matrix_table import fill

EXIT_STOPPED, EXIT_FAILED = 75, 1
EVIDENCE = Path("docs/evidence")


def main(arguments: list[str] | None = None) -> int:
    """Run what is left, then make tables and figures of what is there; returns the exit code."""
    options = _options(arguments)
    stopped, tables = False, {}
    failed: list[Record] = []
    figures = options.figures or options.out / "figures"
    try:
        sweeps = [read_sweep(path) for path in options.sweeps]
        if options.seeds:
            sweeps = [replace(sweep, seeds=tuple(range(options.seeds))) for sweep in sweeps]
        if options.set:
            sweeps = [with_keys(sweep, options.set) for sweep in sweeps]
        every = plan(sweeps, options.out, options.evidence, options.data_root)
        if unknown := sorted(set(options.arms or ()) - {run.head["arm"] for run in every}):
            raise ConfigError(f"--arms: there is no {unknown[0]!r} in {', '.join(map(str, options.sweeps))}")
        planned = [run for run in every if not options.arms or run.head["arm"] in options.arms]
        settle(planned, again=options.again, table=options.table)
        for sweep in sweeps if not options.table else ():
            own = [run for run in planned if run.sweep is sweep]
            take_over(own)
            left = [run for run in own if len(run.lines()) < len(run.names)]
            if left and not stopped:
                print(f"{sweep.name}: {len(left)} of {len(own)} runs to do", flush=True)
                stopped = _run(left, len(own), options, failed)
        for sweep in sweeps:
            if (text := _conclude(sweep, [run for run in every if run.sweep is sweep], figures)) is not None:
                tables[sweep.name] = text
                print(f"\n{sweep.name}\n\n{text}")
        if options.write:
            options.write.write_text(fill(options.write.read_text(), tables, options.write))
    except (ConfigError, OSError, ValueError) as error:
        print(f"ablate.py: {error}", file=sys.stderr)
        return 2
    done = sum(len(run.lines()) == len(run.names) for run in planned)
    print(f"\n{done} of {len(planned)} runs are in {options.evidence}")
    for record in failed:
        print(f"failed: {record['run']}: {'; '.join(f'{part}: {why}' for part, why in record['failures'].items())}")
    if stopped:
        print("stopped; the same command goes on")
        return EXIT_STOPPED
    return EXIT_FAILED if failed else 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweeps", nargs="+", type=Path, metavar="SWEEP.yaml", help="see eval/sweeps")
    parser.add_argument("--out", type=Path, default=Path("runs/ablate"), help="folder of runs (default: %(default)s)")
    parser.add_argument("--evidence", type=Path, help=f"of lines (default: {EVIDENCE})")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="of figures (default: figures in that of --out)")
    parser.add_argument("--seeds", type=int, help="seeds 0, 1, ... in place of the sweep's")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="keys of every arm, such as model and image_size"
    )
    parser.add_argument("--arms", nargs="+", metavar="NAME", help="run these alone")
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each (default: %(default)s)")
    parser.add_argument("--data_root", help="folder that holds voc2012_lt_tiny/ (default: that of CLIP_MORE_TEST_DATA)")
    parser.add_argument("--table", action="store_true", help="run nothing: tables and figures of what is there")
    parser.add_argument("--again", action="store_true", help="run anew what was run with other settings")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables between the markers of a document")
    options = parser.parse_args(arguments)
    if (options.seeds is not None and options.seeds < 1) or options.jobs < 1:
        parser.error("--seeds and --jobs must be 1 or more")
    if options.set and options.evidence is None:
        parser.error(f"--set makes other runs than those of {EVIDENCE}; name a folder for their lines with --evidence")
    options.evidence = options.evidence or EVIDENCE
    return options


def _run(left: list[Planned], chosen: int, options: argparse.Namespace, failed: list[Record]) -> bool:
    """Do what is left; whether it was stopped before the end. Records of what failed are added to `failed`."""
    prepare_arms([run.arm for run in left], options.out)
    by_name = {run.job.name: run for run in left}

    def keep(record: Record) -> None:
        run = by_name[record["run"]]
        there = run.lines()
        for line in record.pop("result", ()):
            if line["arm"] in run.names and line["arm"] not in there:
                append_record(run.file, line)
        append_record(options.out / "runs.jsonl", record)
        if record["state"] == "failed":
            failed.append(record)

    return run_shown([run.job for run in left], chosen, options.jobs, keep)


def _conclude(sweep: Sweep, runs: list[Planned], figures: Path) -> str | None:
    """Statistics, tables and figures of a sweep's lines; the tables, None where there is nothing to compare yet."""
    heads = {name: run.head for run in runs for name in run.names}
    every, evidence = read_lines(runs[0].file), runs[0].file.parent
    kept = [line for line in every if line["arm"] in heads and not differing(line, heads[line["arm"]])]
    # What a line leaves to a default was its default then; the sweep says it as it is now.
    lines = [line | {"values": heads[line["arm"]]["values"]} for line in kept]
    lines.sort(key=lambda line: (list(heads).index(line["arm"]), line["seed"]))
    if other := sorted({line["arm"] for line in every if line not in kept}):
        print(f"note: {runs[0].file} also has lines of other arms or settings, left out: {', '.join(other)}")
    if not any(line["arm"] == sweep.base for line in lines):
        missing = f"line of its base {sweep.base!r}" if lines else "line"
        print(f"\n{sweep.name}: no table, as there is no {missing} in {runs[0].file} yet")
        return None
    from ablate_contrasts import contrast_table, contrasts
    from ablate_stats import summarise

    summary, compared = summarise(lines, sweep.base), contrasts(lines, sweep.contrasts)
    text = "\n\n".join(filter(None, (summary.table(), contrast_table(compared, summary))))
    about = {"sweep": sweep.name, "bed": sweep.bed, "judged_on": sweep.judged_on, "base": sweep.base}
    everything = about | summary.to_dict() | {"contrasts": [one.to_dict() for one in compared]}
    found = json.dumps(everything, indent=1, allow_nan=False, ensure_ascii=False)
    for suffix, content in ((".results.json", found), (".md", text)):
        with written_aside(evidence / f"{sweep.name}{suffix}") as aside:
            aside.write_text(content.rstrip("\n") + "\n", encoding="utf-8")
    try:
        from ablate_figures import draw

        for path in draw(sweep.name, lines, sweep.base, figures):
            print(f"figure: {path}")
    except (ImportError, ValueError) as error:  # no reason to lose the tables
        print(f"no figure of {sweep.name}: {error}")
    return text


if __name__ == "__main__":
    sys.exit(main())
