"""Plan a run on GPUs on paper: speed, memory and cost, from counted operations, peak rates and measured ratios.

python eval/scaling.py                              # print the tables
python eval/scaling.py --price 4 --share 0.3
python eval/scaling.py --write docs/scaling.md      # put them between its markers
python eval/scaling.py --check docs/scaling.md      # fail where they differ

Nothing here has been run on a GPU. docs/scaling.md says what is measured, what a data sheet says, what is assumed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from scaling_machine import Assumptions
from scaling_tables import TABLES, Plan

STEP = "python eval/benchmark.py --section step --dtype fp32 --repetitions 5"
# Medians on two CPU cores, fp32, ViT-B/32, 64 photos: ratio, the command that measured it, and a note.
MEASURED = {
    "stopped_vs_plain": (1.223, STEP, ""),
    "exact_vs_plain": (1.592, STEP, ""),
    "upper_half_vs_plain": (1.244, STEP, ""),
    "last4_vs_plain": (1.098, STEP, ""),
    "text_only_vs_plain": (0.989, STEP, ""),
    "economical_vs_plain": (0.956, STEP, ""),
    "exact_vs_peft": (0.673, STEP, ""),
    "exact_vs_lora": (0.936, STEP, ""),
}
_PART = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    """Print the tables, write them into a document, or compare it with them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=Path, metavar="FILE", help="rows of eval/benchmark.py --json; default: MEASURED")
    parser.add_argument("--price", type=float, default=Assumptions.price, help="of a GPU hour (default: %(default)s)")
    parser.add_argument("--share", type=float, default=Assumptions.share, help="of bf16's peak (default: %(default)s)")
    parser.add_argument("--cores", type=int, default=Assumptions.cores, help="of the CPU a GPU (default: %(default)s)")
    goal = parser.add_mutually_exclusive_group()
    goal.add_argument("--write", type=Path, metavar="FILE", help="put the tables between the markers of a document")
    goal.add_argument("--check", type=Path, metavar="FILE", help="fail where a document's tables are others")
    arguments = parser.parse_args()
    if not 0 < arguments.share <= 1:
        parser.error(f"--share is {arguments.share}; a share of the peak lies in (0, 1]: 0.3 is 30 %")
    if arguments.price < 0 or arguments.cores < 1:
        parser.error("--price must be 0 or more, and --cores 1 or more")
    try:
        assumed = Assumptions(share=arguments.share, price=arguments.price, cores=arguments.cores)
        plan = Plan(assumed, read_rows(arguments.rows)) if arguments.rows else by_default(assumed)
        tables = {name: make(plan) for name, make in TABLES.items()}
        if document := arguments.write or arguments.check:
            text = document.read_text()
            filled = fill(text, tables, document)
    except (OSError, ValueError) as error:
        sys.exit(f"scaling.py: {error}")
    if arguments.write:
        document.write_text(filled)
    elif arguments.check:
        if filled != text:
            other = [name for name, new in parts(filled).items() if parts(text)[name] != new]
            sys.exit(f"{document}: {', '.join(other)} differ from eval/scaling.py; run it with --write {document}")
    else:
        print(*(f"{name}\n\n{lines}\n" for name, lines in tables.items()), sep="\n", end="")


def by_default(assumed: Assumptions) -> Plan:
    """With the ratios of MEASURED."""
    notes = ", ".join(sorted({note for _, _, note in MEASURED.values() if note}))
    return Plan(assumed, {name: ratio for name, (ratio, _, _) in MEASURED.items()}, notes)


def read_rows(file: Path) -> dict[str, float]:
    """Ratios of section step in fp32, by name.

    Raises:
        ValueError: The file holds no such rows; names the first that it lacks.
    """
    try:
        rows = json.loads(file.read_text())
        found = {row["row"].removeprefix("step."): float(row["ratio"]) for row in rows if row["dtype"] == "fp32"}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{file}: no rows of eval/benchmark.py --json ({error!r})") from error
    for name in MEASURED:
        if name not in found:
            raise ValueError(f"{file}: there is no fp32 row step.{name}; make it with `{STEP} --json {file}`")
    return {name: found[name] for name in MEASURED}


def fill(text: str, tables: dict[str, str], document: Path) -> str:
    """The document with these tables between its markers.

    Raises:
        ValueError: It lacks a table, or has a marker of one that there is not.
    """
    there = list(parts(text))
    if sorted(there) != sorted(tables):
        odd = sorted(set(there) ^ set(tables)) or sorted({name for name in there if there.count(name) > 1})
        raise ValueError(f"{document}: needs `<!-- table: NAME -->` and `<!-- end -->` once for each table; see {odd}")
    return _PART.sub(lambda found: f"{found[1]}{tables[found[2]]}\n{found[3]}", text)


def parts(text: str) -> dict[str, str]:
    """What stands between the markers, by name."""
    return {found[2]: found[0] for found in _PART.finditer(text)}


if __name__ == "__main__":
    main()
