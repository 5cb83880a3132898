"""Figures of an ablation: what fits what it varied, and the general part beside the merged model."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ablate_curves import draw_curves, find_curves, reading
from ablate_interval import Difference
from ablate_stats import TOTAL, Line, Summary, summarise
from clip_more.data.profile import GROUPS
from clip_more.evaluation.plots import BEFORE, FALL, INK, PALE, RISE, _figure, _frequency_axes, _save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_PANELS = 6  # arms whose classes are shown one by one
_INCH = 0.3  # of a row


def draw(name: str, lines: Iterable[Line], base: str, folder: Path) -> list[Path]:
    """Draw what the runs of a sweep show, each figure to `<folder>/<name>_<what>.png`.

    Numbers that were varied become curves (`<what>` is the key), arms that are on none a forest plot (`arms`). Where
    there is a general part: its mAP beside the merged model's (`general`), and what the low-rank part does to each
    class by train count (`classes`).

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
    if general := {arm: own for arm, own in _with_general(lines).items() if arm in summary.arms}:
        drawn += [folder / f"{name}_general.png", folder / f"{name}_classes.png"]
        draw_general(general, drawn[-2], f"{title}: W_g alone and with B A")
        draw_classes(general, drawn[-1], f"{title}: what B A does to each class")
    return drawn


def draw_arms(summary: Summary, names: Sequence[str], path: Path, title: str) -> None:
    """Paired differences of arms to their base, x 100, as a forest plot to a PNG: a row each."""
    columns = summary.judged
    places, heads = _places(summary, names)
    labels = [_label(summary, name) for name in names]
    left, lowest = 0.35 + 0.073 * max(map(len, [*labels, *heads])), max(places.values()) + 0.6
    width, height = max(9.0, left + 2.3 * len(columns)), 1.5 + _INCH * (lowest + 0.6)
    figure = _figure((width, height))
    panels = figure.subplots(1, len(columns), sharey=True, sharex=True, squeeze=False)[0]
    figure.subplots_adjust(left=left / width, right=0.985, top=1 - 0.78 / height, bottom=0.72 / height, wspace=0.06)
    furthest = _furthest(summary, names, columns)
    for ax, column in zip(panels, columns, strict=True):
        _rows(ax)
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


def _rows(ax: Axes) -> None:
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.spines["bottom"].set_color(PALE)
    ax.tick_params(colors=PALE, labelcolor=INK, labelsize=8.5, length=3)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color="#e2e2e2", lw=0.7)
    ax.grid(axis="y", color="#f0f0f0", lw=0.7)
    ax.set_axisbelow(True)


def _with_general(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """Lines of trained arms that have a general part, by arm."""
    found: dict[str, list[Line]] = {}
    for line in lines:
        if line.get("general") and "of" not in line:
            found.setdefault(line["arm"], []).append(line)
    return found


def draw_general(arms: Mapping[str, Sequence[Line]], path: Path, title: str) -> None:
    """mAP of the general part and of the merged model by group, means over seeds, to a PNG: a row an arm."""
    from matplotlib.lines import Line2D

    columns = (TOTAL, *GROUPS)
    left = 0.3 + 0.073 * max(map(len, arms))
    width, height = max(9.5, left + 2.4 * len(columns)), 1.55 + 1.15 * _INCH * len(arms)
    figure = _figure((width, height))
    panels = figure.subplots(1, len(columns), sharey=True)
    figure.subplots_adjust(left=left / width, right=0.985, top=1 - 0.78 / height, bottom=0.72 / height, wspace=0.08)
    for ax, column in zip(panels, columns, strict=True):
        _rows(ax)
        for place, lines in enumerate(arms.values()):
            pairs = [(line["general"].get(column), line["map"].get(column)) for line in lines]
            known = [(100 * before, 100 * after) for before, after in pairs if before is not None and after is not None]
            if known:
                _pair(ax, place, known)
            else:
                ax.text(
                    0.5, place, "n/a", transform=ax.get_yaxis_transform(), ha="center", va="center", size=8, color=PALE
                )
        ax.set_title(f"{column}, mAP x 100", size=9.5, color=INK)
    drawn = [ax for ax in panels if ax.lines]
    span = 1.25 * max(0.2, *(ax.dataLim.width for ax in drawn))
    for ax in drawn:  # as many points on each, so that differences are seen in proportion
        middle = (ax.dataLim.x0 + ax.dataLim.x1) / 2
        ax.set_xlim(middle - span / 2, middle + span / 2)
    panels[0].set_yticks(range(len(arms)), list(arms), size=8.5)
    panels[0].set_ylim(len(arms) - 0.45, -0.65)
    figure.text(0.12 / width, 1 - 0.32 / height, title, size=12, weight="bold", color=INK)
    handles = [
        Line2D([], [], ls="", marker="o", ms=6, mfc="white", mec=BEFORE, mew=1.4, label="W_g"),
        Line2D([], [], ls="", marker="^", ms=6, color=RISE, label="W_g + B A, higher"),
        Line2D([], [], ls="", marker="v", ms=6, color=FALL, label="W_g + B A, lower"),
    ]
    figure.legend(handles=handles, loc="lower left", bbox_to_anchor=(0.0, 0.0), ncols=3, frameon=False, fontsize=8.5)
    note = "Means over seeds; numbers: mean difference ± its standard deviation over seeds."
    figure.text(0.985, 0.15 / height, note, size=8.5, color=PALE, ha="right")
    _save(figure, path)


def _pair(ax: Axes, place: float, known: Sequence[tuple[float, float]]) -> None:
    before, after = (statistics.fmean(values) for values in zip(*known, strict=True))
    colour, marker = (RISE, "^") if after > before else (FALL, "v") if after < before else (BEFORE, "o")
    ax.plot([before, after], [place, place], color=colour, lw=1.6, alpha=0.55, zorder=2)
    ax.plot(before, place, "o", ms=6, mfc="white", mec=BEFORE, mew=1.4, zorder=3)
    ax.plot(after, place, marker, ms=6.5, color=colour, mec="white", mew=0.5, zorder=4)
    changes = [b - a for a, b in known]
    sd = f" ± {statistics.stdev(changes):.1f}" if len(changes) > 1 else ""
    text = f"{round(statistics.fmean(changes), 1) + 0.0:+.1f}{sd}"
    ax.text((before + after) / 2, place - 0.2, text, ha="center", va="bottom", size=8, color=INK)


def draw_classes(arms: Mapping[str, Sequence[Line]], path: Path, title: str) -> None:
    """AP of each class, merged less general, against its train count (log), all seeds, to a PNG: a panel an arm."""
    shown = list(arms.items())[:MOST_PANELS]
    across = min(len(shown), 3)
    down = -(-len(shown) // across)
    width, height = 3.6 * across + 0.9, 2.9 * down + 1.15
    figure = _figure((max(width, 7.0), height))
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    figure.subplots_adjust(left=0.75 / figure.get_figwidth(), right=0.98, top=1 - 0.85 / height, bottom=0.85 / height,
                           wspace=0.08, hspace=0.28)  # fmt: skip
    for ax, (name, lines) in zip(panels.flat, shown, strict=False):
        _classes(ax, lines)
        ax.set_title(name, size=9.5, color=INK)
    for ax in panels.flat[len(shown) :]:
        ax.set_visible(False)
    for index, ax in enumerate(panels.flat):
        _frequency_axes(ax)
        ax.set(xlabel="", ylabel="")
        ax.tick_params(labelbottom=index + across >= len(shown))
    figure.supylabel("AP, merged less general, x 100", size=9.5, color=INK, x=0.12 / figure.get_figwidth())
    figure.supxlabel("positives in train (log scale)", size=9.5, color=INK, y=0.36 / height)
    figure.text(0.12 / figure.get_figwidth(), 1 - 0.36 / height, title, size=12, weight="bold", color=INK)
    more = f" The first {len(shown)} of {len(arms)} arms." if len(arms) > len(shown) else ""
    note = f"A mark is a class of one seed; line, from 20 marks on: mean of neighbours by count.{more}"
    figure.text(0.12 / figure.get_figwidth(), 0.12 / height, note, size=8.5, color=PALE)
    _save(figure, path)


def _classes(ax: Axes, lines: Sequence[Line]) -> None:
    points: list[Any] = []
    for line in lines:
        if line.get("ap_general"):
            change = np.array(line["ap"], dtype=float) - np.array(line["ap_general"], dtype=float)
            points += zip(line["counts"], 100 * change, strict=True)
    known = np.array([(max(count, 0.5), change) for count, change in points if not np.isnan(change)]).reshape(-1, 2)
    if not len(known):
        return
    counts, change = known[np.argsort(known[:, 0], kind="stable")].T
    ax.set_xscale("log")
    ax.axhline(0, color=INK, ls=":", lw=1.2, zorder=1)
    size = float(np.clip(60 / np.sqrt(len(counts)), 3, 7))
    for own, colour, marker in ((change > 0, RISE, "^"), (change < 0, FALL, "v"), (change == 0, BEFORE, "o")):
        ax.plot(counts[own], change[own], marker, ms=size, color=colour, alpha=0.4, mew=0, zorder=2)
    if len(counts) >= 20:
        groups = np.array_split(np.arange(len(counts)), min(10, len(counts) // 8))
        x, y = zip(*[(np.exp(np.log(counts[ids]).mean()), change[ids].mean()) for ids in groups], strict=True)
        ax.plot(x, y, color=INK, lw=1.6, zorder=3)
