"""The figure of a selection: the measure on validation photos against the values that were tried."""

from __future__ import annotations

import os
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from clip_more.evaluation.plots import BEFORE, INK, LINES, PALE, _figure, _plain, _save
from clip_more.stage2.choose import Selection

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTHS = {"total": 2.4, "head": 1.5, "medium": 1.5, "tail": 1.5}
# From pale to dark, for a second value that varies.
SHADES = ("#c6dbef", "#9ecae1", "#6baed6", "#3182bd", "#08519c")


def plot_selection(selection: Selection, path: str | os.PathLike[str], *, on: str, title: str) -> None:
    """Draw the scores of all candidates, over all classes and by group, the chosen one marked, to a PNG.

    One value that varies is the x axis; a second one is a line each, over all classes alone.

    Args:
        selection: With several candidates.
        path: The PNG; complete or absent.
        on: What photos they were scored on, in words.
        title: Above the figure.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        ValueError: There is nothing to draw.
    """
    varying = [
        name for name in selection.chosen if len({candidate["values"][name] for candidate in selection.candidates}) > 1
    ]
    if not varying or not any(candidate["scores"] for candidate in selection.candidates):
        raise ValueError("One candidate is no curve: there is nothing to draw.")
    figure = _figure((8.6, 5.2))
    ax = figure.add_axes((0.09, 0.13, 0.75, 0.69))
    named = all(isinstance(selection.chosen[name], str) for name in varying)
    draw = _by_group if len(varying) == 1 or named else _by_line
    draw(ax, selection, varying)
    ax.set_ylabel(f"{selection.measure} x 100", color=INK)
    ax.margins(x=0.03)
    _plain(ax)
    figure.text(0.09, 0.935, title, size=13, weight="bold", color=INK)
    chosen = ", ".join(f"{name} {_text(value)}" for name, value in selection.chosen.items())
    best = next(c["scores"]["total"] for c in selection.candidates if c["values"] == selection.chosen)
    first = selection.stage_one["total"] if selection.stage_one else None
    change = f"{'' if first is None else f'{100 * first:.1f} '}\N{RIGHTWARDS ARROW} {100 * best:.1f}"
    figure.text(0.09, 0.885, f"chosen: {chosen}   |   {selection.measure}: {change}", size=10, color=INK)
    figure.text(0.98, 0.02, on, size=8.5, color=PALE, ha="right")
    _save(figure, path)


def _by_group(ax: Axes, selection: Selection, varying: list[str]) -> None:
    """One line a group of classes; values that have names, and no order, are points alone."""
    values = [_value(candidate["values"], varying) for candidate in selection.candidates]
    named = isinstance(values[0], str)
    places = _places(ax, ", ".join(varying), values)
    chosen = places[values.index(_value(selection.chosen, varying))]
    ends = []
    for group, colour in LINES.items():
        points = [
            (place, 100 * candidate["scores"][group])
            for place, candidate in zip(places, selection.candidates, strict=True)
            if candidate["scores"] and candidate["scores"].get(group) is not None
        ]
        if not points:
            continue
        ax.plot(
            *zip(*points, strict=True),
            color=colour,
            lw=0 if named else WIDTHS[group],
            marker="o",
            ms=6 if named else 3.2,
            zorder=3,
        )
        first = (selection.stage_one or {}).get(group)
        if first is not None:
            ax.axhline(100 * first, color=colour, lw=0.9, ls=(0, (1, 2)), alpha=0.8, zorder=1)
        ends.append((points[-1][1], group, colour))
        at = dict(points).get(chosen)
        if at is not None and group == "total":
            ax.plot([chosen], [at], "o", ms=10, mfc="white", mec=colour, mew=2, zorder=4)
    ax.axvline(chosen, color=BEFORE, lw=1, ls=(0, (4, 3)), zorder=0)
    _name_ends(ax, ends)
    ax.text(1.0, 1.015, "dotted: stage 1", size=8.5, color=PALE, transform=ax.transAxes, ha="right", va="bottom")


def _by_line(ax: Axes, selection: Selection, varying: list[str]) -> None:
    """The last value that varies along x, one line each for the others; over all classes."""
    name, others = varying[-1], varying[:-1]
    values = list(dict.fromkeys(candidate["values"][name] for candidate in selection.candidates))
    places = dict(zip(values, _places(ax, name, values), strict=True))
    lines: dict[tuple[Any, ...], list[tuple[float, float]]] = {}
    for candidate in selection.candidates:
        points = lines.setdefault(tuple(candidate["values"][other] for other in others), [])
        if candidate["scores"] and candidate["scores"]["total"] is not None:
            points.append((places[candidate["values"][name]], 100 * candidate["scores"]["total"]))
    ends: list[tuple[float, str, str]] = []
    shades = [SHADES[round(n * (len(SHADES) - 1) / max(len(lines) - 1, 1))] for n in range(len(lines))]
    for (key, points), colour in zip(lines.items(), shades, strict=True):
        if not points:
            continue
        same = [other for other, there in lines.items() if there == points]
        if key != same[-1]:
            continue  # a curve that lies upon another
        text = _line_name(others, same)
        ax.plot(*zip(*points, strict=True), color=colour, lw=1.8, marker="o", ms=3.5, zorder=3)
        ends.append((points[-1][1], text, colour))
        if tuple(selection.chosen[other] for other in others) in same:
            chosen = places[selection.chosen[name]]
            ax.plot([chosen], [dict(points)[chosen]], "o", ms=10, mfc="white", mec=INK, mew=2, zorder=4)
            ax.axvline(chosen, color=BEFORE, lw=1, ls=(0, (4, 3)), zorder=0)
    first = (selection.stage_one or {}).get("total")
    if first is not None:
        ax.axhline(100 * first, color=INK, lw=0.9, ls=(0, (1, 2)), zorder=1)
        ax.text(1.0, 1.015, "dotted: stage 1", size=8.5, color=PALE, transform=ax.transAxes, ha="right", va="bottom")
    _name_ends(ax, ends)


def _line_name(others: list[str], keys: list[tuple[Any, ...]]) -> str:
    """Of the curve of these values; of several, the first and the last."""
    first, last = ([_text(value) for value in key] for key in (keys[0], keys[-1]))
    parts = [a if a == b else f"{a} to {b}" for a, b in zip(first, last, strict=True)]
    return ", ".join(f"{other} {part}" for other, part in zip(others, parts, strict=True))


def _value(values: dict[str, Any], varying: list[str]) -> Any:
    """The value that varies; several names as one."""
    return values[varying[0]] if len(varying) == 1 else "\n".join(values[name] for name in varying)


def _places(ax: Axes, name: str, values: list[Any]) -> list[float]:
    """Where values stand on the x axis: as they are on an even grid, else side by side."""
    ax.set_xlabel(name, color=INK)
    numbers = [value for value in values if isinstance(value, float)]
    steps = {round(b - a, 9) for a, b in pairwise(numbers)}
    if len(numbers) == len(values) > 2 and len(steps) == 1:
        return numbers
    places = [float(place) for place in range(len(values))]
    ax.set_xticks(places, [_text(value) for value in values])
    return places


def _name_ends(ax: Axes, ends: list[tuple[float, str, str]]) -> None:
    """Names at the right end of the lines, moved apart where lines end close to each other."""
    from sklearn.isotonic import isotonic_regression

    low, high = ax.get_ylim()
    ends = sorted(ends)
    steps = 0.052 * (high - low) * np.arange(len(ends))
    # As little as possible (least squares), and not above or below the axis.
    free = isotonic_regression([y for y, *_ in ends] - steps, y_min=low, y_max=max(low, high - steps[-1]))
    for place, (_, text, colour) in zip(free + steps, ends, strict=True):
        ax.text(1.012, place, text, color=colour, size=9.5, va="center", transform=ax.get_yaxis_transform())


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
