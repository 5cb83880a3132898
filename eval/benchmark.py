"""Measure clip_more against stock libraries, contenders interleaved in one process: one table, or rows of JSON.

python eval/benchmark.py --quick
python eval/benchmark.py --section step --dtype fp32 --json rows.json
python eval/benchmark.py --quick --section text --profile step.txt

A step has 64 photos and 12 layers a tower, with --quick 32 and 3; section memory has 16 photos.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from importlib import metadata
from pathlib import Path

import torch

from bench_inference import inference
from bench_loader import loader
from bench_memory import memory
from bench_metrics import metrics
from bench_profile import profile_step
from bench_rows import Options, Row
from bench_scale import scale
from bench_stage2 import stage2
from bench_step import step
from bench_text import text

SECTIONS: dict[str, Callable[..., Iterable[Row]]] = {
    "step": step,
    "text": text,
    "scale": scale,
    "memory": memory,
    "metrics": metrics,
    "loader": loader,
    "inference": inference,
    "stage2": stage2,
}


def main() -> None:
    """Run the sections that were asked for; print each row, and write it into the JSON file, when it is known."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="3 layers a tower, 32 photos, one dtype, 3 repetitions")
    parser.add_argument("--section", choices=SECTIONS, nargs="+", default=list(SECTIONS), help="default: all")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), nargs="+", help="default: both; with --quick fp32")
    parser.add_argument("--repetitions", type=int, help="timed rounds; default: 7, with --quick 3")
    parser.add_argument("--threads", type=int, help="of the CPU; default: torch's own choice")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--photos", type=Path, metavar="FOLDER", help="loader, inference: JPEGs; default: drawn ones")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows as a JSON list")
    parser.add_argument(
        "--profile", type=Path, metavar="FILE", help="write the most expensive operations of one step of exact MORE"
    )
    arguments = parser.parse_args()
    if arguments.repetitions is not None and arguments.repetitions < 1:
        parser.error(f"--repetitions is {arguments.repetitions}, but at least one round must be timed")
    for key, file in (("--json", arguments.json), ("--profile", arguments.profile)):
        if file and not file.parent.is_dir():
            parser.error(f"{key}: there is no folder {file.parent}")
    if arguments.photos and not arguments.photos.is_dir():
        parser.error(f"--photos: there is no folder {arguments.photos}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    options = Options(
        quick=arguments.quick,
        dtypes=tuple(arguments.dtype or (("fp32",) if arguments.quick else ("fp32", "bf16"))),
        repetitions=arguments.repetitions or (3 if arguments.quick else 7),
        device=arguments.device,
    )
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # of what PEFT calls
    start = time.perf_counter()
    print(machine(options.device), versions(), sep="\n", end="\n\n")
    print(LINE.format("row", "dtype", "ours", "peer", "unit", "ratio", "spread", "goal", "").rstrip())
    rows = []
    of_photos = {name: partial(SECTIONS[name], photos=arguments.photos) for name in ("loader", "inference")}
    sections = SECTIONS | of_photos
    for section in arguments.section:
        for row in sections[section](options):
            rows.append(row)
            print(as_line(row), flush=True)
            if arguments.json:
                write_rows(rows, arguments.json)
    if arguments.profile:
        profile_step(options, arguments.profile)
    minutes, seconds = divmod(round(time.perf_counter() - start), 60)
    print(f"\n{len(rows)} rows in {minutes} min {seconds} s")


def write_rows(rows: list[Row], file: Path) -> None:
    """The rows so far as a JSON list, so that a section that fails later takes none of them away."""
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    aside.write_text(json.dumps([asdict(row) for row in rows], indent=2, allow_nan=False) + "\n")
    aside.replace(file)


LINE = "{:34} {:5} {:>9} {:>9} {:8} {:>6} {:>15} {:>8} {}"


def as_line(row: Row) -> str:
    """One line of the table."""
    met = {None: "", True: "met", False: "missed"}[row.met]
    spread = "{:.3f}..{:.3f}".format(*row.spread)
    figures = (f"{row.ours:.3f}", f"{row.peer:.3f}", row.unit, f"{row.ratio:.3f}", spread, row.goal_text, met)
    return LINE.format(row.row, row.dtype, *figures).rstrip()


def machine(device: str) -> str:
    """The processor, and the accelerator where one is used."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().split("\n")
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    parts = [f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"]
    if device == "cuda":
        parts.append(torch.cuda.get_device_name())
    else:
        parts.append(
            f"{torch.backends.cpu.get_cpu_capability()}, one-minute load {os.getloadavg()[0]:.1f} at the start"
        )
    return "; ".join(parts)


def versions() -> str:
    """Of Python and the libraries."""
    packages = ("torch", "transformers", "peft", "open_clip_torch", "clip_more")
    return ", ".join([f"Python {platform.python_version()}", *(f"{p} {metadata.version(p)}" for p in packages)])


if __name__ == "__main__":
    main()
