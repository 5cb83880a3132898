"""Arms of an ablation compared with others than its base: paired, with the intervals of the main table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ablate_interval import Difference
from ablate_stats import HEAD, MEDIUM, Line, Summary, by_arm, cost_ratio, paired_differences, shown_gain
from clip_more.evaluation.groups import NOT_APPLICABLE
from matrix_table import _markdown


@dataclass(frozen=True)
class Contrast:
    """An arm less another.

    Attributes:
        arm: Name of a line.
        other: Of the line it is compared with.
        seeds: Those that both have.
        differences: Column to difference; None where no seed has one.
        cost: Seconds over those of the other.
    """

    arm: str
    other: str
    seeds: tuple[int, ...]
    differences: Mapping[str, Difference | None]
    cost: float | None

    def to_dict(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        columns = {name: found and found.to_dict() for name, found in self.differences.items()}
        return {
            "arm": self.arm,
            "against": self.other,
            "seeds": list(self.seeds),
            "cost": self.cost,
            "columns": columns,
        }


def contrasts(lines: Iterable[Line], pairs: Iterable[tuple[str, str]]) -> list[Contrast]:
    """Each pair of which both arms have lines.

    Args:
        lines: As :func:`~ablate_stats.summarise` takes them.
        pairs: Names of an arm and another.

    Raises:
        ValueError: As `summarise`.
    """
    arms, found = by_arm(lines), []
    for arm, other in pairs:
        if arm in arms and other in arms:
            seeds = tuple(seed for seed in arms[arm] if seed in arms[other])
            own = [(arms[arm][seed], arms[other][seed]) for seed in seeds]
            found.append(Contrast(arm, other, seeds, paired_differences(own), cost_ratio(own)))
    return found


def contrast_table(found: Sequence[Contrast], summary: Summary) -> str:
    """Markdown, x 100, and a sentence below; nothing of no contrast."""
    if not found:
        return ""
    columns = (*(column for column in summary.judged if column != HEAD), MEDIUM, HEAD)
    rows = []
    for one in found:
        label = f"{one.arm} less {one.other}"
        if len(one.seeds) < summary.ran:
            label += f" ({len(one.seeds)} of {summary.ran} seeds)" if one.seeds else " (no seed in common)"
        gains = [shown_gain(one.differences[column]) for column in columns]
        rows.append([label, *gains, NOT_APPLICABLE if one.cost is None else f"{one.cost:.1f}"])
    head = ["arm less another", *(f"\N{GREEK CAPITAL LETTER DELTA} {column}" for column in columns), "cost"]
    reading = "Pairs of arms, seed by seed, with intervals and bold as above. Cost: over that of the other."
    return f"{_markdown(head, rows)}\n\n{reading}"
