"""Tables of the matrix, made from the results.json files of its runs."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clip_more.evaluation.groups import COLUMNS, NOT_APPLICABLE
from clip_more.evaluation.results import Results
from clip_more.evaluation.single_label import TOP1
from matrix_jobs import TRAINING, Job, Record
from matrix_rows import TASKS, Row

PLAIN, MORE = "plain", "MORE"
KINDS = (PLAIN, MORE)
MAP = tuple(f"mAP {column}" for column in COLUMNS)
ACCURACY = tuple(f"top-1 {column}" for column in TOP1)
NOT_RUN = "not run"
_BETWEEN = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_LONGEST_REASON = 150

# Column to a figure in 0..100, None where there is none.
Figures = Mapping[str, float | None]


@dataclass
class Line:
    """One method of a table, with and without MORE; or what needs no training.

    Attributes:
        part: Part of the table.
        label: Of the method.
        seeds: How many it was to be run with; 0: it needs no training.
        figures: By kind and seed.
        failures: By kind and seed: why there are none.
    """

    part: str
    label: str
    seeds: int
    figures: dict[str, dict[int, Figures]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    failures: dict[str, dict[int, str]] = field(default_factory=lambda: {kind: {} for kind in KINDS})

    def over_seeds(self, kind: str, column: str) -> list[float]:
        """The figures that there are."""
        found = (figures.get(column) for _, figures in sorted(self.figures[kind].items()))
        return [value for value in found if value is not None]

    def differences(self, column: str) -> list[float]:
        """MORE minus plain, seed by seed."""
        plain, more = self.figures[PLAIN], self.figures[MORE]
        pairs = ((plain[seed].get(column), more[seed].get(column)) for seed in sorted(plain.keys() & more.keys()))
        return [after - before for before, after in pairs if before is not None and after is not None]


def read_lines(rows: Sequence[Row], jobs: Mapping[tuple[str, str, int], Job], records: Sequence[Record]) -> list[Line]:
    """The lines of one bed, those that need no training first in their part.

    Args:
        rows: Of the bed.
        jobs: By run name (of the row), kind and seed.
        records: Of all attempts; of a run without results the last one says why.
    """
    last = {record["run"]: record for record in records}
    lines: list[Line] = []
    for row in rows:
        own = {(kind, seed): job for (run, kind, seed), job in jobs.items() if run == row.run}
        seeds = len({seed for _, seed in own})
        found = [Line(row.part, row.label, seeds), *(Line(row.part, method, seeds) for method in row.methods)]
        for line, name in zip(found, (TRAINING, *row.methods), strict=True):
            for (kind, seed), job in own.items():
                try:
                    results = Results.load(job.results(name))
                except FileNotFoundError:
                    failures = last.get(job.name, {}).get("failures", {})
                    if reason := failures.get(name) or failures.get(TRAINING):
                        line.failures[kind][seed] = reason
                    continue
                except ValueError as error:
                    line.failures[kind][seed] = str(error)
                    continue
                line.figures[kind][seed] = figures_of(results, "merged" if name == TRAINING else name)
                if name == TRAINING and not any(other.part == row.part for other in lines):
                    lines += _untrained(row, results)
        lines += found
    return lines


def figures_of(results: Results, row: str) -> Figures:
    """mAP, and top-1 of a single-label set, of one row of a results.json."""
    found = {name: _percent(results.maps[row][column]) for name, column in zip(MAP, COLUMNS, strict=True)}
    top1 = results.metrics.get(row, {}).get("top1")
    if top1 is not None:
        found |= {name: _percent(top1[column]) for name, column in zip(ACCURACY, TOP1, strict=True)}
    return found


def _untrained(row: Row, results: Results) -> list[Line]:
    chance, zero_shot = Line(row.part, "chance", 0), Line(row.part, "zero-shot", 0)
    mean = (results.chance or {}).get("mean", {})
    chance.figures[PLAIN][0] = {name: _percent(mean.get(column)) for name, column in zip(MAP, COLUMNS, strict=True)}
    if not TASKS[row.task].pretrained or "zero-shot" not in results.ap:
        return [chance]
    zero_shot.figures[PLAIN][0] = figures_of(results, "zero-shot")
    return [chance, zero_shot]


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def columns_of(lines: Sequence[Line]) -> tuple[str, ...]:
    """mAP alone, or with top-1 where any line has it."""
    shown = {column for line in lines for kind in KINDS for one in line.figures[kind].values() for column in one}
    return (*MAP, *ACCURACY) if shown & set(ACCURACY) else MAP


def bed_tables(lines: Sequence[Line]) -> str:
    """Markdown: for each part of a bed a table of figures, and one of differences."""
    blocks = []
    for part in dict.fromkeys(line.part for line in lines):
        own = [line for line in lines if line.part == part]
        blocks += [f"**{part}**", _figures_table(own), f"**{part}: MORE minus plain**", _differences_table(own)]
        if failed := _failures(own):
            blocks.append(failed)
    return "\n\n".join(blocks)


def _figures_table(lines: Sequence[Line]) -> str:
    columns = columns_of(lines)
    rows = []
    for line in lines:
        for kind in KINDS if line.seeds else KINDS[:1]:
            label = f"{line.label} + MORE" if kind == MORE else line.label
            cells = [spread(line.over_seeds(kind, column)) for column in columns]
            rows.append(_row(line, label, len(line.figures[kind]), bool(line.failures[kind]), cells))
    return _markdown(["", *columns], rows)


def _differences_table(lines: Sequence[Line]) -> str:
    columns, rows = columns_of(lines), []
    for line in lines:
        if line.seeds:
            pairs = len(line.figures[PLAIN].keys() & line.figures[MORE].keys())
            failed = any(line.failures[kind] for kind in KINDS)
            cells = [spread(line.differences(column), signed=True) for column in columns]
            rows.append(_row(line, line.label, pairs, failed, cells))
    return _markdown(["", *columns], rows)


def _row(line: Line, label: str, seeds: int, failed: bool, cells: list[str]) -> list[str]:
    if line.seeds and not seeds:
        return [label, "failed" if failed else NOT_RUN, *[""] * (len(cells) - 1)]
    note = f" ({seeds} of {line.seeds} seeds)" if seeds < line.seeds else ""
    return [label + note, *cells]


def _failures(lines: Sequence[Line]) -> str:
    found = []
    for line in lines:
        for kind in KINDS:
            for seed, reason in sorted(line.failures[kind].items()):
                cut = reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]} ..."
                label = f"{line.label} + MORE" if kind == MORE else line.label
                found.append(f"- {label}, seed {seed}, failed: {cut}")
    return "\n".join(found)


def spread(values: Sequence[float], *, signed: bool = False) -> str:
    """Mean and standard deviation (of a sample): ``82.31 ± 0.42``; the mean alone of one value."""
    if not values:
        return NOT_APPLICABLE
    sign = "+" if signed else ""
    # + 0.0 turns -0.0 into 0.0.
    mean = f"{round(statistics.fmean(values), 2) + 0.0:{sign}.2f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.2f}"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"

    return "\n".join([line(head), line(["---", *["---:"] * (len(head) - 1)]), *map(line, rows)])


def fill(text: str, tables: Mapping[str, str], document: Path) -> str:
    """The document with these tables between its markers; other tables stay.

    Raises:
        ValueError: It lacks the markers of a table, or has them twice.
    """
    there = [found[2] for found in _BETWEEN.finditer(text)]
    for name in tables:
        if there.count(name) != 1:
            raise ValueError(f"{document}: needs the lines `<!-- table: {name} -->` and `<!-- end -->`, once")
    put: Callable[[re.Match[str]], str] = lambda found: (  # noqa: E731
        f"{found[1]}\n{tables[found[2]]}\n\n{found[3]}" if found[2] in tables else found[0]
    )
    return _BETWEEN.sub(put, text)
