"""The figure of one bed: every method plain and with MORE, as dots with their spread over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clip_more.evaluation.plots import BEFORE, INK, PALE, RISE
from clip_more.files import written_aside
from matrix_table import ACCURACY, KINDS, MAP, MORE, PLAIN, Line, columns_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LOOKS = {PLAIN: (BEFORE, "o", "white", 0.14), MORE: (RISE, "D", RISE, -0.14)}
_CHANCE = "#b0563a"


def draw_bed(lines: Sequence[Line], path: Path, title: str) -> None:
    """Total and tail of every method to a PNG; of single-label sets top-1 of all and few too.

    Args:
        lines: Of the bed; lines without a figure keep their place.
        path: The PNG; complete or absent.
        title: Above the figure.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        ValueError: There is nothing to draw.
    """
    if not any(line.seeds and line.figures[kind] for line in lines for kind in KINDS):
        raise ValueError("no run is finished, so there is nothing to draw")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = [MAP[0], MAP[-1]]
    if len(columns_of(lines)) > len(MAP):
        columns += [ACCURACY[0], ACCURACY[-1]]
    places, heads = _places(lines)
    lowest = max(places.values(), default=0.0) + 0.7
    height = 1.5 + 0.36 * (lowest + 0.7)
    figure = Figure(figsize=(3.2 + 2.7 * len(columns), height), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)  # no pyplot: no display, no global state
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for ax, column in zip(panels, columns, strict=True):
        _panel(ax, lines, places, column)
        for part, place in heads.items():
            if ax is panels[0]:
                ax.text(-0.02, place, part, transform=ax.get_yaxis_transform(), ha="right", va="center",
                        size=8.5, weight="bold", color=INK)  # fmt: skip
            if place > 0:
                ax.axhline(place - 0.55, color=PALE, lw=0.6)
    panels[0].set_ylim(lowest, -0.7)
    trained = {index: place for index, place in places.items() if lines[index].seeds}
    panels[0].set_yticks(list(trained.values()), [lines[index].label for index in trained], size=8.5)
    figure.subplots_adjust(left=2.5 / figure.get_figwidth(), right=0.985, top=1 - 0.8 / height, bottom=0.5 / height,
                           wspace=0.08)  # fmt: skip
    figure.text(0.12 / figure.get_figwidth(), 1 - 0.32 / height, title, size=11.5, weight="bold", color=INK)
    _legend(figure, lines)
    with written_aside(path) as aside:
        figure.savefig(aside, format="png")


def _places(lines: Sequence[Line]) -> tuple[dict[int, float], dict[str, float]]:
    """Downwards: of each line that was trained by index, and of the head of each part."""
    places: dict[int, float] = {}
    heads: dict[str, float] = {}
    at = 0.0
    for part in dict.fromkeys(line.part for line in lines):
        heads[part] = at
        for index, line in enumerate(lines):
            if line.part == part and line.seeds:
                at += 1
                places[index] = at
        at += 1.1
    return places, heads


def _panel(ax: Axes, lines: Sequence[Line], places: dict[int, float], column: str) -> None:
    for index, place in places.items():
        line = lines[index]
        for kind in KINDS:
            if not (values := line.over_seeds(kind, column)):
                continue
            colour, marker, face, up = _LOOKS[kind]
            mean, y = statistics.fmean(values), place - up
            ax.plot([min(values), max(values)], [y, y], color=colour, lw=1.6, alpha=0.6, zorder=2)
            ax.plot(mean, y, marker, ms=5, mfc=face, mec=colour, mew=1.3, zorder=3)
        if not any(line.figures[kind] for kind in KINDS):
            _say(ax, place, "failed" if any(line.failures[kind] for kind in KINDS) else "not run")
    for part in dict.fromkeys(line.part for line in lines):
        own = [place for index, place in places.items() if lines[index].part == part]
        in_part = [line for line in lines if line.part == part]
        if column in ACCURACY and not set(ACCURACY) & set(columns_of(in_part)) and columns_of(lines) != MAP:
            _say(ax, sum(own) / len(own), "several labels a photo")
        for line in in_part:
            if line.label == "zero-shot" and own and (found := line.over_seeds(PLAIN, column)):
                ax.plot([found[0]] * 2, [min(own) - 0.5, max(own) + 0.5], ":", color=_CHANCE, lw=1.2, zorder=1)
    ax.set_title(f"{column} x 100", size=9.5, color=INK)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.spines["bottom"].set_color(PALE)
    ax.tick_params(colors=PALE, labelcolor=INK, labelsize=8.5, length=3)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color="#e2e2e2", lw=0.7)
    ax.grid(axis="y", color="#f0f0f0", lw=0.7)
    ax.set_axisbelow(True)
    ax.margins(x=0.08)


def _say(ax: Axes, place: float, text: str) -> None:
    ax.text(0.5, place, text, transform=ax.get_yaxis_transform(), ha="center", va="center", size=8, color=PALE)


def _legend(figure: Figure, lines: Sequence[Line]) -> None:
    from matplotlib.lines import Line2D

    seeds = max(line.seeds for line in lines)
    what = "one seed" if seeds == 1 else f"mean, least and most of {seeds} seeds"
    names = {PLAIN: "plain", MORE: "with MORE"}
    handles = [
        Line2D([], [], ls="-", color=_LOOKS[kind][0], marker=_LOOKS[kind][1], ms=5, mfc=_LOOKS[kind][2],
               mec=_LOOKS[kind][0], mew=1.3, label=f"{names[kind]}: {what}")
        for kind in KINDS
    ]  # fmt: skip
    if any(line.label == "zero-shot" for line in lines):
        handles.append(Line2D([], [], ls=":", color=_CHANCE, lw=1.2, label="before training"))
    figure.legend(handles=handles, loc="lower left", bbox_to_anchor=(0.02, 0.0), ncols=3, frameon=False, fontsize=8.5)
