"""A run on paper: what it is of, what is assumed, and how its tables are written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from scaling_counts import B16, L14
from scaling_machine import H100, Assumptions, Seconds, overheads, seconds
from scaling_step import Job, Method

COCO_PHOTOS, COCO_EPOCHS = 118_287, 5
PHOTOS, CLASSES, TOKENS, ROWS = 9_000_000, 20_000, 20, 12_000
TEST = 125_000
JPEG, PREPARED, PREPARED_BYTES = 398.9, 1700.0, 265_000  # photos a second and core, bytes a photo
WORKERS = 2  # by default
COCO = {B16: Job(B16, 128), L14: Job(L14, 64)}
OPEN = {clip: replace(job, classes=CLASSES, tokens=TOKENS, rows=ROWS, text="frozen") for clip, job in COCO.items()}
Row = Iterable[Any]


@dataclass(frozen=True)
class Plan:
    """What the tables are made of.

    Attributes:
        assumed: Shares, price and so on.
        measured: Ratios of the benchmark, by row.
        note: What is to be said of them.
    """

    assumed: Assumptions
    measured: dict[str, float]
    note: str = ""

    def step(self, method: Method, job: Job, gpus: int = 1, **options: Any) -> Seconds:
        """On H100s."""
        overhead = overheads(self.measured).get(method, 1.0)
        return seconds(method, job, H100, self.assumed, gpus=gpus, overhead=overhead, **options)

    def rate(self, method: Method, job: Job, gpus: int = 1, **options: Any) -> float:
        """Photos a second of all GPUs."""
        return gpus * job.photos / self.step(method, job, gpus, **options).total


def table(head: Row, rows: Iterable[Row], left: int = 1) -> str:
    """A Markdown table; columns from `left` on are numbers."""
    names = list(head)
    marks = ["---" if i < left else "---:" for i in range(len(names))]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in (names, marks, *rows))


def both(figures: Iterable[float], form: str) -> str:
    """A cell of two figures, of ViT-B/16 and of ViT-L/14."""
    return "; ".join(format(figure, form) for figure in figures)
