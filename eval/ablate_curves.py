"""Figures of an ablation that varied a number: mAP against it, with the base beside."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ablate_stats import DATA_KEYS, MIXED, Arm, Summary
from clip_more.config import MethodConfig
from clip_more.evaluation.plots import BEFORE, INK, PALE, _figure, _plain, _save
from matrix_table import spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, each with a shape of its own.
SERIES = (("#0072b2", "o"), ("#d55e00", "s"), ("#009e73", "^"), ("#cc79a7", "D"), ("#222222", "v"), ("#b58900", "P"))
_METHOD = {one.name: one.default for one in dataclasses.fields(MethodConfig)}


@dataclass(frozen=True)
class Curve:
    """Arms that differ in one number.

    Attributes:
        label: What sets it apart from the other curves of its key.
        points: Number to arm, rising.
        key: What varies.
        also: Keys that vary together with it.
    """

    label: str
    points: Mapping[float, str]
    key: str
    also: tuple[str, ...] = ()


def find_curves(summary: Summary) -> dict[str, list[Curve]]:
    """Key to its curves, each of arms that agree in all else: three, or two on other data or with the key in a name.

    An arm's number is the one in its name (`more rho=0.1`), else in its values, else the package's default: what does
    not differ from the base recipe is not in a line. Bases are no points: they are what the points are compared with.
    """
    settings = {name: _settings(name, arm) for name, arm in summary.arms.items() if arm.against is not None}
    keys = dict.fromkeys(key for own in settings.values() for key, value in own.items() if _is_number(value))
    found: dict[str, list[Curve]] = {}
    for key in keys:
        for rest, points in _alike(settings, key).items():
            named = key in DATA_KEYS or any(f"{key}=" in name for name in points.values())
            if len(points) > (1 if named else 2):
                found.setdefault(key, []).append(Curve(rest, points, key))
    on_curves = {name for curves in found.values() for curve in curves for name in curve.points.values()}
    left = {name: own for name, own in settings.items() if name not in on_curves}
    for curve in _together(left):
        found.setdefault(curve.key, []).append(curve)
    return {key: _labelled(curves, settings, summary) for key, curves in found.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _settings(name: str, arm: Arm) -> dict[str, Any]:
    named = {}
    for word in name.split():
        key, sign, value = word.partition("=")
        if sign:
            try:
                named[key] = float(value)
            except ValueError:
                continue
    return {**arm.values, **named}


def _alike(settings: Mapping[str, Mapping[str, Any]], key: str) -> dict[str, dict[float, str]]:
    """Arms by their other keys, then by their number."""
    groups: dict[str, dict[float, str]] = {}
    for name, own in settings.items():
        value = own.get(key, 1.0 if key == MIXED else _METHOD.get(key))
        if _is_number(value):
            rest = {other: found for other, found in own.items() if other != key and found != _METHOD.get(other)}
            groups.setdefault(json.dumps(rest, sort_keys=True, default=str), {}).setdefault(float(value), name)
    return {
        rest: dict(sorted(points.items()))
        for rest, points in groups.items()
        if any(key in settings[name] for name in points.values())
    }


def _together(settings: Mapping[str, Mapping[str, Any]]) -> list[Curve]:
    """Arms of the same keys whose numbers all move together, such as a rank with its learning rate."""
    groups: dict[str, dict[str, Mapping[str, Any]]] = {}
    for name, own in settings.items():
        same = {key: None if _is_number(value) else value for key, value in own.items()}
        groups.setdefault(json.dumps(same, sort_keys=True, default=str), {})[name] = own
    curves = []
    for rest, members in groups.items():
        first = next(iter(members.values()))
        moving = [key for key in first if len({str(own[key]) for own in members.values()}) > 1]
        distinct = all(len({str(own[key]) for own in members.values()}) == len(members) for key in moving)
        if len(members) > 2 and moving and distinct:
            key = min(moving, key=lambda name: name not in _METHOD)
            points = dict(sorted((float(own[key]), name) for name, own in members.items()))
            curves.append(Curve(rest, points, key, tuple(other for other in moving if other != key)))
    return curves


def _labelled(curves: Sequence[Curve], settings: Mapping[str, Mapping[str, Any]], summary: Summary) -> list[Curve]:
    """Curves named by the words that all their arms share; by their values where these do not tell curves apart."""
    labels = [_shared_words(curve) for curve in curves]
    if not all(labels) or len(set(labels)) < len(labels):
        labels = [_values_in_words(curve, settings, summary) for curve in curves]
    return [dataclasses.replace(curve, label=label) for curve, label in zip(curves, labels, strict=True)]


def _shared_words(curve: Curve) -> str:
    names = [name.split() for name in curve.points.values()]
    words = [
        word for word in names[0] if all(word in other for other in names) and not word.startswith(f"{curve.key}=")
    ]
    return " ".join(words)


def _values_in_words(curve: Curve, settings: Mapping[str, Mapping[str, Any]], summary: Summary) -> str:
    names = list(curve.points.values())
    base = summary.arms[summary.base].values
    own = {k: v for k, v in settings[names[0]].items() if k not in (curve.key, *curve.also) and base.get(k) != v}
    return ", ".join(f"{key} {_text(value)}" for key, value in own.items()) or names[0]


def _text(value: Any) -> str:
    return f"{value:g}" if _is_number(value) else str(value)


def draw_curves(summary: Summary, curves: Sequence[Curve], path: Path, title: str) -> None:
    """mAP by column against the number that varied, to a PNG.

    Seeds differ in their data, and so by far more than arms do: the dot of a seed is its *difference* to the base, laid
    on the base's mean; so is the interval. A point whose bar leaves out the base's line is above or below it.
    """
    figure = _figure((2.75 * len(summary.judged) + 2.2, 4.4))
    panels = figure.subplots(1, len(summary.judged))
    figure.subplots_adjust(left=0.075, right=0.985, top=0.78, bottom=0.215, wspace=0.2)
    for ax, column in zip(panels, summary.judged, strict=True):
        _axis(ax, curves)
        for index, curve in enumerate(curves):
            _curve(ax, summary, curve, column, index, len(curves))
        ax.set_title(column + _base(ax, summary, curves, column), size=10.5, color=INK)
        _plain(ax)
    _same_span(panels, summary, curves)
    panels[0].set_ylabel("mAP x 100", color=INK, size=9.5)
    figure.text(0.02, 0.93, title, size=13, weight="bold", color=INK)
    _legend(figure, summary, curves)
    _save(figure, path)


def _axis(ax: Axes, curves: Sequence[Curve]) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    x = sorted({value for curve in curves for value in curve.points})
    positive = [value for value in x if value > 0]
    wide = len(positive) > 1 and positive[-1] / positive[0] > 10
    if wide and positive == x:
        ax.set_xscale("log")
        ax.set_xlim(x[0] / (x[-1] / x[0]) ** 0.08, x[-1] * (x[-1] / x[0]) ** 0.08)
    elif wide and x[0] == 0:
        ax.set_xscale("symlog", linthresh=positive[0], linscale=0.4)
        ax.set_xlim(-0.4 * positive[0], 1.3 * x[-1])
    else:
        ax.set_xlim(x[0] - 0.08 * (x[-1] - x[0]), x[-1] + 0.08 * (x[-1] - x[0]))
    if len(x) <= 8:
        ax.xaxis.set_major_locator(FixedLocator(x))
        ax.set_xticklabels([f"{value:g}" for value in x])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel(curves[0].key + (f" (with {' and '.join(curves[0].also)})" if curves[0].also else ""), color=INK)


def _aside(ax: Axes, x: Sequence[float] | np.ndarray, pixels: float) -> np.ndarray:
    there = ax.transData.transform(np.column_stack([x, np.zeros(len(x))]))
    there[:, 0] += pixels
    return ax.transData.inverted().transform(there)[:, 0]


def _against(summary: Summary, name: str) -> str:
    return summary.arms[name].against or name


def _on_base(summary: Summary, name: str, column: str) -> tuple[float, list[float], list[float]] | None:
    """Mean, seeds and interval of an arm, x 100, laid on its base's mean; None where it has no difference."""
    difference, base = summary.arms[name].differences[column], summary.arms[_against(summary, name)].mean(column)
    if difference is None or base is None:
        return None
    bounds = [value for value in (difference.low, difference.high) if value is not None]
    dots = [100 * (base + value) for value in difference.by_seed.values()]
    return 100 * (base + difference.mean), dots, [100 * (base + value) for value in bounds]


def _curve(ax: Axes, summary: Summary, curve: Curve, column: str, index: int, of: int) -> None:
    there = {x: found for x, name in curve.points.items() if (found := _on_base(summary, name, column))}
    if not there:
        return
    colour, marker = SERIES[index % len(SERIES)]
    places = _aside(ax, list(there), 16 * (index - (of - 1) / 2))  # several curves share their numbers
    for place, left, (x, (mean, dots, bounds)) in zip(places, _aside(ax, places, -7), there.items(), strict=True):
        ax.plot([left] * len(dots), dots, "o", ms=3.2, color=colour, alpha=0.35, mew=0, zorder=2)
        ax.plot([place] * len(bounds), bounds, color=colour, lw=1.6, alpha=0.75, zorder=3)
        difference = summary.arms[curve.points[x]].differences[column]
        face = colour if difference and difference.clear else "white"
        ax.plot(place, mean, marker, ms=6, mfc=face, mec=colour, mew=1.4, zorder=5)
    ax.plot(places, [mean for mean, _, _ in there.values()], color=colour, lw=1.3, zorder=4)


def _base(ax: Axes, summary: Summary, curves: Sequence[Curve], column: str) -> str:
    """The base, dotted: a level where it is one, and then its mean and spread in words; else a line of its own."""
    bases = {x: _against(summary, name) for curve in curves for x, name in sorted(curve.points.items())}
    means = {x: 100 * mean for x, name in bases.items() if (mean := summary.arms[name].mean(column)) is not None}
    if not means:
        return ""
    if len(set(bases.values())) > 1:
        ax.plot(list(means), list(means.values()), ":", color=BEFORE, lw=1.5, marker="o", ms=4, mfc="white", zorder=1.5)
        return ""
    (name,) = set(bases.values())
    ax.axhline(next(iter(means.values())), color=BEFORE, ls=":", lw=1.5, zorder=1.5)
    return f" ({name}: {spread([100 * value for value in summary.arms[name].figures[column].values()])})"


def _same_span(panels: Sequence[Axes], summary: Summary, curves: Sequence[Curve]) -> None:
    """As many points of mAP on every panel, so that gains are seen in proportion."""
    ranges = []
    for column in summary.judged:
        values = []
        for name in (name for curve in curves for name in curve.points.values()):
            if found := _on_base(summary, name, column):
                base = summary.arms[_against(summary, name)].mean(column)
                values += [found[0], *found[1], *found[2], 100 * (base or 0.0)]
        ranges.append((min(values), max(values)) if values else (0.0, 0.0))
    span = 1.1 * max(0.2, *(high - low for low, high in ranges))
    for ax, (low, high) in zip(panels, ranges, strict=True):
        ax.set_ylim((low + high - span) / 2, (low + high + span) / 2)


def _legend(figure: Figure, summary: Summary, curves: Sequence[Curve]) -> None:
    from matplotlib.lines import Line2D

    handles = []
    for curve, (colour, marker) in zip(curves, itertools.cycle(SERIES), strict=False):
        handles.append(Line2D([], [], color=colour, marker=marker, ms=5.5, lw=1.3, label=curve.label))
    bases = {_against(summary, name) for curve in curves for name in curve.points.values()}
    label = bases.pop() if len(bases) == 1 else "base on the same data"
    handles.append(Line2D([], [], color=BEFORE, ls=":", lw=1.5, label=label))
    figure.legend(handles=handles, loc="upper left", bbox_to_anchor=(0.012, 0.93), ncols=6, frameon=False, fontsize=9)
    dots = " Dots: seeds, their difference to the base on top of its mean." if summary.ran > 1 else ""
    figure.text(0.02, 0.03, reading(summary) + dots, size=8.5, color=PALE)


def reading(summary: Summary) -> str:
    """How to read points and bars; below every figure that has them."""
    if summary.ran == 1:
        return "One seed; bar: 95 % interval of the difference over test photos alone."
    bar = "bar: 95 % interval of the paired difference; filled where it and a t test leave out zero"
    return f"Mean of {summary.ran} seeds; {bar}."
