"""Figures of an ablation by group and by class: what the low-rank part changes, and how well train photos are fit."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ablate_stats import TOTAL, Line, Summary
from clip_more.data.profile import GROUPS
from clip_more.evaluation.plots import BEFORE, FALL, INK, PALE, RISE, _figure, _frequency_axes, _save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_PANELS = 6  # arms whose classes are shown one by one
ROW = 0.3  # inches

# Column to what a row shows of it, a pair a seed: before and after.
Pairs = Mapping[str, Sequence[tuple[float, float]]]


def trained_with(lines: Iterable[Line], key: str) -> dict[str, list[Line]]:
    """Lines of trained arms that have this key, by arm."""
    found: dict[str, list[Line]] = {}
    for line in lines:
        if line.get(key) and "of" not in line:
            found.setdefault(line["arm"], []).append(line)
    return found


def draw_general(arms: Mapping[str, Sequence[Line]], path: Path, title: str) -> None:
    """mAP of the general part and of the merged model by group, means over seeds, to a PNG: a row an arm."""

    def pairs(lines: Sequence[Line], column: str) -> list[tuple[float, float]]:
        found = [(line["general"].get(column), line["map"].get(column)) for line in lines]
        return [(100 * before, 100 * after) for before, after in found if before is not None and after is not None]

    rows = {name: {column: pairs(lines, column) for column in (TOTAL, *GROUPS)} for name, lines in arms.items()}
    _draw_pairs(rows, path, title, ("W_g", "W_g + B A"), "mAP x 100")


def risk_pairs(summary: Summary, lines: Iterable[Line]) -> dict[str, list[tuple[Line, Line]]]:
    """Arm to its base's line and its own, of each seed on which both know their training risk."""
    arms = {
        name: {line["seed"]: line for line in own if line.get("groups")}
        for name, own in trained_with(lines, "risk").items()
    }
    found = {}
    for name, own in arms.items():
        base = arms.get(summary.arms[name].against or "", {})
        if common := [(base[seed], own[seed]) for seed in sorted(own) if seed in base]:
            found[name] = common
    return found


def draw_risk(arms: Mapping[str, Sequence[tuple[Line, Line]]], path: Path, title: str) -> None:
    """Training risk of arms beside their base's by group, means over seeds, to a PNG: a row an arm.

    Args:
        arms: As :func:`risk_pairs` gives them.
        path: The PNG.
        title: Above the figure.
    """
    bases = {base["arm"] for pairs in arms.values() for base, _ in pairs}
    most = max(map(len, arms.values()))
    rows: dict[str, Pairs] = {}
    for name, pairs in arms.items():
        notes = [f"{len(pairs)} of {most} seeds"] * (len(pairs) < most)
        notes += [f"against {pairs[0][0]['arm']}"] * (len(bases) > 1)
        risks = [(group_risk(base), group_risk(own)) for base, own in pairs]
        rows[f"{name} ({', '.join(notes)})" if notes else name] = {
            group: [(1000 * a[group], 1000 * b[group]) for a, b in risks if group in a and group in b]
            for group in GROUPS
        }
    names = (bases.pop() if len(bases) == 1 else "base on the same data", "arm")
    _draw_pairs(rows, path, title, names, "cross-entropy x 1,000", same_span=False)


def group_risk(line: Line) -> dict[str, float]:
    """Mean training risk over the classes of each group that have one."""
    found = {}
    for group in GROUPS:
        own = [risk for risk, of in zip(line["risk"], line["groups"], strict=True) if of == group and risk is not None]
        if own:
            found[group] = statistics.fmean(own)
    return found


def _draw_pairs(
    rows: Mapping[str, Pairs], path: Path, title: str, names: tuple[str, str], unit: str, *, same_span: bool = True
) -> None:
    from matplotlib.lines import Line2D

    columns = list(next(iter(rows.values())))
    left = 0.3 + 0.073 * max(map(len, rows))
    width, height = max(9.5, left + 2.4 * len(columns)), 1.55 + 1.15 * ROW * len(rows)
    figure = _figure((width, height))
    panels = figure.subplots(1, len(columns), sharey=True)
    figure.subplots_adjust(left=left / width, right=0.985, top=1 - 0.78 / height, bottom=0.72 / height, wspace=0.08)
    for ax, column in zip(panels, columns, strict=True):
        bare_rows(ax)
        for place, row in enumerate(rows.values()):
            if row[column]:
                _pair(ax, place, row[column])
            else:
                middle = ax.get_yaxis_transform()
                ax.text(0.5, place, "n/a", transform=middle, ha="center", va="center", size=8, color=PALE)
        ax.set_title(f"{column}, {unit}", size=9.5, color=INK)
    drawn = [ax for ax in panels if ax.lines]
    widest = max([0.2, *(ax.dataLim.width for ax in drawn)])
    for ax in drawn:  # with the same span, differences are seen in proportion
        span = 1.25 * widest if same_span else 1.4 * max(0.2, ax.dataLim.width)
        middle = (ax.dataLim.x0 + ax.dataLim.x1) / 2
        ax.set_xlim(middle - span / 2, middle + span / 2)
        ax.set_xticks([tick for tick in ax.get_xticks() if abs(tick - middle) < 0.44 * span])
    panels[0].set_yticks(range(len(rows)), list(rows), size=8.5)
    panels[0].set_ylim(len(rows) - 0.45, -0.65)
    figure.text(0.12 / width, 1 - 0.32 / height, title, size=12, weight="bold", color=INK)
    handles = [
        Line2D([], [], ls="", marker="o", ms=6, mfc="white", mec=BEFORE, mew=1.4, label=names[0]),
        Line2D([], [], ls="", marker="^", ms=6, color=RISE, label=f"{names[1]}, higher"),
        Line2D([], [], ls="", marker="v", ms=6, color=FALL, label=f"{names[1]}, lower"),
    ]
    figure.legend(handles=handles, loc="lower left", bbox_to_anchor=(0.0, 0.0), ncols=3, frameon=False, fontsize=8.5)
    scales = "" if same_span else "; scales differ"
    note = f"Means over seeds; numbers: difference ± standard deviation{scales}."
    figure.text(0.985, 0.15 / height, note, size=8.5, color=PALE, ha="right")
    _save(figure, path)


def bare_rows(ax: Axes) -> None:
    """Style of a panel whose rows are named on the left."""
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.spines["bottom"].set_color(PALE)
    ax.tick_params(colors=PALE, labelcolor=INK, labelsize=8.5, length=3)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color="#e2e2e2", lw=0.7)
    ax.grid(axis="y", color="#f0f0f0", lw=0.7)
    ax.set_axisbelow(True)


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

    def changes(line: Line) -> np.ndarray:
        return 100 * (np.array(line["ap"], dtype=float) - np.array(line["ap_general"], dtype=float))

    _draw_panels(arms, changes, path, title, "AP, merged less general, x 100", signed=True)


def draw_delta(arms: Mapping[str, Sequence[Line]], path: Path, title: str) -> None:
    """`delta` of each class against its train count (log), all seeds, to a PNG: a panel an arm."""

    def moved(line: Line) -> np.ndarray:
        return np.array(line["delta"], dtype=float)

    _draw_panels(arms, moved, path, title, "RMS of B A's part / sd of the logits", signed=False)


def _draw_panels(
    arms: Mapping[str, Sequence[Line]], figures: Callable[[Line], np.ndarray], path: Path, title: str, ylabel: str,
    *, signed: bool,
) -> None:  # fmt: skip
    shown = list(arms.items())[:MOST_PANELS]
    across = min(len(shown), 3)
    down = -(-len(shown) // across)
    width, height = max(3.6 * across + 0.9, 7.0), 2.9 * down + 1.15
    figure = _figure((width, height))
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    figure.subplots_adjust(left=0.75 / width, right=0.98, top=1 - 0.85 / height, bottom=0.85 / height,
                           wspace=0.08, hspace=0.28)  # fmt: skip
    for ax, (name, lines) in zip(panels.flat, shown, strict=False):
        points = [pair for line in lines for pair in zip(line["counts"], figures(line), strict=True)]
        _classes(ax, np.array([(max(count, 0.5), y) for count, y in points if not np.isnan(y)]).reshape(-1, 2), signed)
        ax.set_title(name, size=9.5, color=INK)
    if not signed:
        panels.flat[0].set_ylim(bottom=0)
    for ax in panels.flat[len(shown) :]:
        ax.set_visible(False)
    for index, ax in enumerate(panels.flat):
        _frequency_axes(ax)
        ax.set(xlabel="", ylabel="")
        ax.tick_params(labelbottom=index + across >= len(shown))
    figure.supylabel(ylabel, size=9.5, color=INK, x=0.12 / width)
    figure.supxlabel("positives in train (log scale)", size=9.5, color=INK, y=0.36 / height)
    figure.text(0.12 / width, 1 - 0.36 / height, title, size=12, weight="bold", color=INK)
    more = f" The first {len(shown)} of {len(arms)} arms." if len(arms) > len(shown) else ""
    note = f"A mark is a class of one seed; line, from 20 marks on: mean of neighbours by count.{more}"
    figure.text(0.12 / width, 0.12 / height, note, size=8.5, color=PALE)
    _save(figure, path)


def _classes(ax: Axes, known: np.ndarray, signed: bool) -> None:
    if not len(known):
        return
    counts, y = known[np.argsort(known[:, 0], kind="stable")].T
    ax.set_xscale("log")
    size = float(np.clip(60 / np.sqrt(len(counts)), 3, 7))
    marks = [(y > 0, RISE, "^"), (y < 0, FALL, "v"), (y == 0, BEFORE, "o")] if signed else [(y >= 0, RISE, "o")]
    for own, colour, marker in marks:
        ax.plot(counts[own], y[own], marker, ms=size, color=colour, alpha=0.4, mew=0, zorder=2)
    if signed:
        ax.axhline(0, color=INK, ls=":", lw=1.2, zorder=1)
    if len(counts) >= 20:
        groups = np.array_split(np.arange(len(counts)), min(10, len(counts) // 8))
        centres = [(np.exp(np.log(counts[ids]).mean()), y[ids].mean()) for ids in groups]
        ax.plot(*zip(*centres, strict=True), color=INK, lw=1.6, zorder=3)
