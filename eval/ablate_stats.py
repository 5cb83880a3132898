"""What an ablation's finished runs say: means over seeds, and paired differences to a base with their intervals."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ablate_interval import DRAWS, Difference, interval, sample_sd
from clip_more.config import DataConfig
from clip_more.data.profile import GROUPS
from clip_more.evaluation.groups import NOT_APPLICABLE
from matrix_table import _markdown, spread

TOTAL, HEAD, MEDIUM, TAIL = ("total", *GROUPS)
REST = f"{MEDIUM}+{TAIL}"
COLUMNS = (TOTAL, HEAD, MEDIUM, TAIL, REST)  # of `resampled`, too
SCALE = 1e4  # of the whole numbers in `resampled`
MIXED = "alpha"  # of lines that are judged with weights mixed with the start's; the trained arm itself is at 1
DATA_KEYS = frozenset({one.name for one in dataclasses.fields(DataConfig)} | {"image_size"})

# A finished run, as one line of docs/evidence/<sweep>.jsonl holds it.
Line = Mapping[str, Any]


@dataclass(frozen=True)
class Arm:
    """One arm over its seeds.

    Attributes:
        values: Keys that differ from the base recipe, and how its weights were mixed.
        against: The arm that it is compared with; None of a base.
        seeds: Those that count: all of a base, else those that the base has too; all where it has none of them.
        figures: Column to seed to mAP in 0..1, without seeds in which no class of the group has an AP.
        differences: Column to difference; None where no seed has one.
        cost: Seconds over those of the base, of the same seeds.
    """

    values: Mapping[str, Any]
    against: str | None
    seeds: tuple[int, ...]
    figures: Mapping[str, Mapping[int, float]]
    differences: Mapping[str, Difference | None] = field(default_factory=lambda: dict.fromkeys(COLUMNS))
    cost: float | None = None

    def mean(self, column: str) -> float | None:
        """Over seeds."""
        found = self.figures[column]
        return statistics.fmean(found.values()) if found else None

    def to_dict(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        columns = {}
        for column in COLUMNS:
            found, difference = list(self.figures[column].values()), self.differences[column]
            columns[column] = {
                "seeds": len(found), "mean": self.mean(column), "sd": sample_sd(found),
                "difference": difference.to_dict() if difference else None,
            }  # fmt: skip
        return {
            "values": dict(self.values), "against": self.against, "seeds": list(self.seeds), "cost": self.cost,
            "columns": columns,
        }  # fmt: skip


@dataclass(frozen=True)
class Summary:
    """A sweep: its arms by name, a base before those that are compared with it.

    Attributes:
        base: The arm that others are compared with.
        ran: Of any arm, the most seeds.
    """

    sweep: str
    bed: str
    judged_on: str
    base: str
    ran: int
    arms: Mapping[str, Arm]

    @property
    def judged(self) -> tuple[str, ...]:
        """Columns to judge an arm by; on photos, where rare classes have few positives, medium and tail together."""
        return (TOTAL, TAIL, HEAD) if self.bed.startswith("digits") else (TOTAL, REST, TAIL, HEAD)

    def to_dict(self) -> dict[str, Any]:
        """Strict JSON: no NaN."""
        arms = {name: arm.to_dict() for name, arm in self.arms.items()}
        return {
            "sweep": self.sweep, "bed": self.bed, "judged_on": self.judged_on, "base": self.base, "draws": DRAWS,
            "arms": arms,
        }  # fmt: skip

    def table(self, differences: Sequence[str] | None = None) -> str:
        """Markdown, x 100, and a sentence below that says how to read it.

        Args:
            differences: Columns whose difference is shown; those of :attr:`judged` without it.
        """
        differences = differences or self.judged
        shown = (TOTAL, HEAD, MEDIUM, TAIL)
        rows = []
        for name, arm in self.arms.items():
            means = [spread([100 * value for value in arm.figures[column].values()]) for column in shown]
            gains = [shown_gain(arm.differences[column], base=arm.against is None) for column in differences]
            cost = "1" if arm.against is None else NOT_APPLICABLE if arm.cost is None else f"{arm.cost:.1f}"
            rows.append([self._label(name, arm), *means, *gains, cost])
        head = ["arm", *shown, *(f"\N{GREEK CAPITAL LETTER DELTA} {column}" for column in differences), "cost"]
        return f"{_markdown(head, rows)}\n\n{self._reading()}"

    def _label(self, name: str, arm: Arm) -> str:
        notes = []
        if arm.against is not None and not any(arm.differences.values()):
            notes.append("no seed in common with its base")
        elif len(arm.seeds) < self.ran:
            notes.append(f"{len(arm.seeds)} of {self.ran} seeds")
        if arm.against not in (None, self.base):
            notes.append(f"against {arm.against}")
        return f"{name} ({', '.join(notes)})" if notes else name

    def _reading(self) -> str:
        many = f"{self.ran} seeds, mean ± standard deviation" if self.ran > 1 else "One seed"
        found = {d.spread_by for arm in self.arms.values() for d in arm.differences.values() if d}
        over = (" or ".join(sorted(found)) or "nothing yet").replace("test photos", f"{self.judged_on} photos")
        bold = "bold where this and a paired t test over seeds both leave out zero"
        if found == {"test photos"}:
            bold = "what another seed would change is not in it"
        return (
            f"{many}, x 100, on {self.judged_on} photos. \N{GREEK CAPITAL LETTER DELTA}: difference to `{self.base}` "
            f"seed by seed, with its 95 % interval over {over}; {bold}. Cost: seconds of "
            "training, those of the CPU where there is no GPU, over the base's; they vary by some 10 %."
        )


def summarise(lines: Iterable[Line], base: str) -> Summary:
    """Means of every arm, and its paired differences to `base`.

    An arm of other data than the base's (imbalance, image size, ...) is compared with the arm that is the base on
    those data, if there is one.

    Args:
        lines: Of one sweep. `resampled` may be absent. Lines of all seeds with the same `test_photos` (any string, such
            as a digest) were judged on the same photos, and row k of their `resampled` must be the same draw of them:
            a draw of the bootstrap then takes one row for all its seeds, so that the photos' share of the error does
            not average out over seeds, which it does not. Without it each seed has photos of its own.
        base: Name of an arm.

    Raises:
        ValueError: There is no finished run of `base`, an arm has two different lines of a seed, or lines are of
            several sweeps.
    """
    arms = by_arm(lines)
    if base not in arms:
        raise ValueError(f"no finished run of the base {base!r}; finished arms: {', '.join(arms) or 'none'}")
    first = next(iter(arms[base].values()))
    values = {name: varied(next(iter(found.values()))) for name, found in arms.items()}
    against = {name: _base_of(own, values, base) for name, own in values.items()}
    order = sorted(arms, key=lambda name: (list(arms).index(against[name]), name != against[name]))
    made = {name: _arm(values[name], arms[name], against[name], arms[against[name]], name) for name in order}
    ran = max(len(found) for found in arms.values())
    return Summary(first["sweep"], first["bed"], first["judged_on"], base, ran, made)


def varied(line: Line) -> dict[str, Any]:
    """What makes a line's arm: its keys, and how its weights were mixed."""
    return {**line["values"], **({MIXED: line[MIXED]} if MIXED in line else {})}


def by_arm(lines: Iterable[Line]) -> dict[str, dict[int, Line]]:
    """Lines by arm and, in order, seed.

    Raises:
        ValueError: As `summarise`.
    """
    arms: dict[str, dict[int, Line]] = {}
    of = None
    for line in lines:
        where = tuple(line[key] for key in ("sweep", "bed", "judged_on"))
        if of not in (None, where):
            raise ValueError(f"lines of {' '.join(of)} and of {' '.join(where)}; summarise one sweep at a time")
        of = where
        own = arms.setdefault(line["arm"], {})
        if line["seed"] in own and own[line["seed"]]["values"] != line["values"]:
            raise ValueError(
                f"{line['sweep']}: arm {line['arm']!r} has two lines of seed {line['seed']} with other values; "
                "remove the one that no longer counts"
            )
        own[line["seed"]] = line
    return {name: dict(sorted(own.items())) for name, own in arms.items()}


def _base_of(own: Mapping[str, Any], values: Mapping[str, Mapping[str, Any]], base: str) -> str:
    wanted = {**values[base], **{key: value for key, value in own.items() if key in DATA_KEYS}}
    return next((name for name, others in values.items() if others == wanted), base)


def _arm(values: Mapping[str, Any], own: Mapping[int, Line], against: str, other: Mapping[int, Line], name: str) -> Arm:
    common = [seed for seed in own if seed in other]
    seeds = common or list(own)
    measured = {seed: _measured(own[seed]) for seed in seeds}
    figures = {column: {s: m for s in seeds if (m := measured[s][column]) is not None} for column in COLUMNS}
    if name == against:
        return Arm(values, None, tuple(seeds), figures)
    pairs = [(own[seed], other[seed]) for seed in common]
    return Arm(values, against, tuple(seeds), figures, paired_differences(pairs), cost_ratio(pairs))


def _measured(line: Line) -> dict[str, float | None]:
    return {column: line["map"].get(column) for column in COLUMNS}


def cost_ratio(pairs: Sequence[tuple[Line, Line]]) -> float | None:
    """Seconds of the first lines over those of the second."""
    seconds = [(a["seconds"], b["seconds"]) for a, b in pairs if a.get("seconds") and b.get("seconds")]
    return sum(a for a, _ in seconds) / sum(b for _, b in seconds) if seconds else None


def paired_differences(pairs: Sequence[tuple[Line, Line]]) -> dict[str, Difference | None]:
    """First less second of each pair, which are of one seed: column to difference, None where no pair has both."""
    drawn = [_resampled(a) - _resampled(b) for a, b in pairs]
    photos = {line.get("test_photos") for pair in pairs for line in pair}
    found: dict[str, Difference | None] = {}
    for index, column in enumerate(COLUMNS):
        both = [(_measured(a)[column], _measured(b)[column]) for a, b in pairs]
        there = [i for i, (a, b) in enumerate(both) if a is not None and b is not None]
        by_seed = {pairs[i][0]["seed"]: both[i][0] - both[i][1] for i in there}  # type: ignore[operator]
        if not by_seed:
            found[column] = None
            continue
        rows = [values[:, index] for i in there if not np.isnan(values := drawn[i])[:, index].all()]
        measured = np.array(list(by_seed.values()))
        if len(rows) < len(there):  # lines without resamples: the interval is over seeds
            rows = []
        low, high = interval(measured, rows, shared=len(photos) == 1 and None not in photos)
        parts = ["seeds"] * (len(there) > 1) + ["test photos"] * bool(rows)
        found[column] = Difference(by_seed, low, high, " and ".join(parts) or "nothing")
    return found


def _resampled(line: Line) -> np.ndarray:
    """``(K, 5)`` in 0..1; one row of NaN where a line has none."""
    rows = line.get("resampled") or [[None] * len(COLUMNS)]
    return np.array(rows, dtype=float) / SCALE


def shown_gain(difference: Difference | None, *, base: bool = False) -> str:
    """x 100, with its interval, bold where it is clear; nothing of a base."""
    if difference is None:
        return "" if base else NOT_APPLICABLE
    text = f"{100 * difference.mean:+.2f}"
    if difference.low is not None and difference.high is not None:
        text += f" [{100 * difference.low:+.2f}, {100 * difference.high:+.2f}]"
    return f"**{text}**" if difference.clear else text
