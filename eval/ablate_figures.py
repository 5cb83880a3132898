"""Figures of an ablation: what fits what it varied and what its lines hold; the forest plot of its arms."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ablate_class_figures import (
    ROW,
    bare_rows,
    draw_classes,
    draw_delta,
    draw_general,
    draw_risk,
    risk_pairs,
    trained_with,
)
from ablate_curves import draw_curves, find_curves, reading
from ablate_interval import Difference
from ablate_stats import Line, Summary, summarise
from clip_more.evaluation.plots import BEFORE, FALL, INK, PALE, RISE, _figure, _save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_ROWS = 12  # trained arms whose training risk is shown


def draw(name: str, lines: Iterable[Line], base: str, folder: Path) -> list[Path]:
    """Draw what the runs of a sweep show, each figure to `<folder>/<name>_<what>.png`.

    Numbers that were varied become curves (`<what>` is the key), arms that are on none a forest plot (`arms`). Where
    there is a general part: its mAP beside the merged model's (`general`), and what the low-rank part does to the AP
    (`classes`) and adds to the logit (`delta`) of each class by train count. Of a sweep of few arms: how well they fit
    their train photos (`risk`). What a line does not hold is passed over.

    Args:
        name: Of the sweep.
        lines: As :func:`~ablate_stats.summarise` takes them.
        base: The arm that others are compared with.
        folder: Made where it is missing.

    Returns:
        The figures; none where only the base has run.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        ValueError: As ``summarise``.
    """
    lines = list(lines)
    summary = summarise(lines, base)
    title = f"{name}: {summary.bed}, judged on {summary.judged_on}"
    drawn = []
    curves = find_curves(summary)
    for key, own in curves.items():
        drawn.append(folder / f"{name}_{key}.png")
        draw_curves(summary, own, drawn[-1], title)
    on_curves = {arm for own in curves.values() for curve in own for arm in curve.points.values()}
    compared = [arm for arm, found in summary.arms.items() if any(found.differences.values())]
    if set(compared) - on_curves:
        compared = [arm for arm in compared if arm not in on_curves or "=" not in arm]  # no steps of a grid or mix
        drawn.append(folder / f"{name}_arms.png")
        draw_arms(summary, compared, drawn[-1], title)
    if general := trained_with(lines, "general"):
        drawn += [folder / f"{name}_general.png", folder / f"{name}_classes.png"]
        draw_general(general, drawn[-2], f"{title}: W_g alone and with B A")
        draw_classes(general, drawn[-1], f"{title}: what B A does to each class")
    if moved := trained_with(lines, "delta"):
        drawn.append(folder / f"{name}_delta.png")
        draw_delta(moved, drawn[-1], f"{title}: what B A adds to each class's logit")
    if len({line["arm"] for line in lines if "of" not in line}) <= MOST_ROWS and (risks := risk_pairs(summary, lines)):
        drawn.append(folder / f"{name}_risk.png")
        draw_risk(risks, drawn[-1], f"{name}: {summary.bed}, risk on train photos by group")
    return drawn


def draw_arms(summary: Summary, names: Sequence[str], path: Path, title: str) -> None:
    """Paired differences of arms to their base, x 100, as a forest plot to a PNG: a row each."""
    columns = summary.judged
    places, heads = _places(summary, names)
    labels = [_label(summary, name) for name in names]
    left, lowest = 0.35 + 0.073 * max(map(len, [*labels, *heads])), max(places.values()) + 0.6
    width, height = max(9.0, left + 2.3 * len(columns)), 1.5 + ROW * (lowest + 0.6)
    figure = _figure((width, height))
    panels = figure.subplots(1, len(columns), sharey=True, sharex=True, squeeze=False)[0]
    figure.subplots_adjust(left=left / width, right=0.985, top=1 - 0.78 / height, bottom=0.72 / height, wspace=0.06)
    furthest = _furthest(summary, names, columns)
    for ax, column in zip(panels, columns, strict=True):
        bare_rows(ax)
        for name in names:
            if difference := summary.arms[name].differences[column]:
                _difference(ax, places[name], difference, furthest)
            else:
                ax.text(0, places[name], "n/a", ha="center", va="center", size=8, color=PALE)
        ax.axvline(0, color=INK, ls=":", lw=1.2, zorder=1)
        ax.set_title(f"{column}, points of mAP", size=9.5, color=INK)
    panels[0].set_xlim(-1.06 * furthest, 1.06 * furthest)
    panels[0].set_ylim(lowest, -0.6)
    panels[0].set_yticks([places[name] for name in names], labels, size=8.5)
    for head, place in heads.items():
        panels[0].text(-0.03, place, head, transform=panels[0].get_yaxis_transform(), ha="right", va="center",
                       size=8.5, weight="bold", color=INK)  # fmt: skip
    figure.text(0.12 / width, 1 - 0.32 / height, title, size=12, weight="bold", color=INK)
    dots = " Dots: seeds." if summary.ran > 1 else ""
    figure.text(0.12 / width, 0.15 / height, reading(summary) + dots, size=8.5, color=PALE)
    _save(figure, path)


def _places(summary: Summary, names: Sequence[str]) -> tuple[dict[str, float], dict[str, float]]:
    """Downwards: of each arm, and of the words that name the base of those below."""
    places: dict[str, float] = {}
    heads: dict[str, float] = {}
    at = -1.0
    for base in dict.fromkeys(summary.arms[name].against or name for name in names):
        at += 1
        heads[f"less {base}"] = at
        for name in names:
            if summary.arms[name].against == base:
                at += 1
                places[name] = at
    return places, heads


def _label(summary: Summary, name: str) -> str:
    seeds = len(summary.arms[name].seeds)
    return name if seeds == summary.ran else f"{name} ({seeds} of {summary.ran} seeds)"


def _furthest(summary: Summary, names: Sequence[str], columns: Sequence[str]) -> float:
    """End of the axis: holds every interval, but those of arms that are far off all others."""
    ends = []
    for name in names:
        found = [d for column in columns if (d := summary.arms[name].differences[column])]
        values = [value for d in found for value in (d.mean, d.low, d.high) if value is not None]
        ends.append(max(map(abs, values), default=0.0))
    return 100 * max(1e-3, *(end for end in ends if end <= 4 * statistics.median(ends)))


def _difference(ax: Axes, place: float, difference: Difference, furthest: float) -> None:
    mean = 100 * difference.mean
    colour = BEFORE if not difference.clear else RISE if mean > 0 else FALL
    if abs(mean) > furthest:
        side = np.sign(mean)
        ax.plot(side * furthest, place, ">" if side > 0 else "<", ms=6, color=colour, zorder=4)
        ax.text(0.93 * side * furthest, place, f"{mean:+.1f}", ha="right" if side > 0 else "left", va="center",
                size=8.5, color=INK)  # fmt: skip
        return
    dots = [100 * value for value in difference.by_seed.values() if abs(100 * value) <= furthest]
    ax.plot(dots, [place] * len(dots), "o", ms=3.2, color=colour, alpha=0.32, mew=0, zorder=2)
    if difference.low is not None and difference.high is not None:
        ax.plot([100 * difference.low, 100 * difference.high], [place, place], color=colour, lw=2, zorder=3)
    ax.plot(mean, place, "o", ms=6, mfc=colour if difference.clear else "white", mec=colour, mew=1.4, zorder=4)
