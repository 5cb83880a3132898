"""The figure of AP per class against train frequency, and what all figures share: colours, canvas, file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from clip_more.data.profile import ClassProfile
from clip_more.evaluation.class_labels import name_classes
from clip_more.evaluation.groups import COLUMNS, GROUPS, split_map
from clip_more.files import written_aside

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart with every common colour blindness. Direction is also a shape, group a place.
BEFORE, RISE, FALL, INK, PALE = "#8a8a8a", "#0072b2", "#d55e00", "#222222", "#6f6f6f"
LINES = {"total": INK, "head": "#0072b2", "medium": "#009e73", "tail": "#d55e00"}
BANDS = {"tail": "#f1f1ee", "medium": "#ffffff", "head": "#f1f1ee"}


def plot_ap_by_frequency(
    profile: ClassProfile,
    before: np.ndarray,
    after: np.ndarray,
    path: str | os.PathLike[str],
    *,
    labels: tuple[str, str] = ("zero-shot", "fine-tuned"),
    title: str | None = None,
) -> None:
    """Draw each class's AP before and after against its train count (log), groups side by side, to a PNG.

    Classes of equal count stand beside each other, a little off their count. Names are put where they fit, the
    largest changes first; with very many classes some go without.

    Args:
        profile: Names, train counts, groups.
        before: ``(C,)`` AP in 0..1, NaN where there is none; such classes are left out and counted below the figure.
        after: ``(C,)``, likewise.
        path: The PNG; complete or absent.
        labels: What `before` and `after` are called.
        title: Above the figure.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        ValueError: Shapes disagree, or no class has both values.
    """
    maps = split_map(before, profile), split_map(after, profile)
    before, after = 100 * np.asarray(before, dtype=float), 100 * np.asarray(after, dtype=float)
    shown = np.flatnonzero(~np.isnan(before) & ~np.isnan(after))
    if not len(shown):
        raise ValueError("No class has an AP both before and after, so there is nothing to draw.")
    figure = _figure((11, 6.6))
    ax = figure.add_axes((0.065, 0.105, 0.915, 0.745))
    counts = np.maximum(np.asarray(profile.counts, dtype=float), 0.5)
    ax.set_xscale("log")
    ax.set_xlim(counts[shown].min() / 1.35, counts[shown].max() * 1.35)
    low, high = min(before[shown].min(), after[shown].min()), max(before[shown].max(), after[shown].max())
    # Room above the highest mark for the names of the groups.
    ax.set_ylim(max(-3.0, low - 0.12 * (high - low) - 2), high + 0.12 * (high - low) + 6)
    ax.set_yticks([tick for tick in ax.get_yticks() if ax.get_ylim()[0] <= tick <= 100])
    _bands(ax, profile)
    x = _beside(ax, counts, profile, shown)
    size = float(np.clip(220 / len(shown), 3.5, 8))
    change = after - before
    directions = ((change > 0, RISE, "^"), (change < 0, FALL, "v"), (change == 0, BEFORE, "o"))
    ax.plot(x[shown], before[shown], "o", ms=size * 0.8, mfc="white", mec=BEFORE, mew=1.2, zorder=3)
    for changed, colour, marker in directions:
        own = shown[changed[shown]]
        ax.vlines(x[own], before[own], after[own], color=colour, lw=1.6, alpha=0.55, zorder=2)
        ax.plot(x[own], after[own], marker, ms=size, color=colour, mec="white", mew=0.5, zorder=4)
    _frequency_axes(ax)
    _legend(ax, labels, size)
    names, edges = [profile.names[c] for c in shown], [edge for edge, _ in list(_edges(profile).values())[1:]]
    name_classes(ax, names, x[shown], before[shown], after[shown], colour=INK, edges=edges)
    figure.text(0.065, 0.955, title or "AP per class against train frequency", size=14, weight="bold", color=INK)
    figure.text(0.065, 0.915, _summary(maps, labels), size=10, color=INK)
    if np.abs(np.log(x[shown] / counts[shown])).max() > 0.01:
        note = "Classes of equal or near counts are spread sideways, so that none covers another."
        figure.text(0.065, 0.02, note, size=8.5, color=PALE)
    if missing := len(before) - len(shown):
        note = f"{missing} {'class' if missing == 1 else 'classes'} without AP not shown"
        figure.text(0.98, 0.02, note, size=8.5, color=PALE, ha="right")
    _save(figure, path)


def _figure(size: tuple[float, float]) -> Figure:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'Figures need matplotlib, which is not installed: pip install "clip_more[plots]".', name=error.name
        ) from error
    figure = Figure(figsize=size, dpi=150, facecolor="white")
    FigureCanvasAgg(figure)  # no pyplot: no display, no global state
    return figure


def _save(figure: Figure, path: str | os.PathLike[str]) -> None:
    with written_aside(path) as aside:
        figure.savefig(aside, format="png")


def _plain(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(PALE)
    ax.tick_params(colors=PALE, labelcolor=INK, labelsize=9)
    ax.grid(axis="y", color="#dddddd", lw=0.7)
    ax.set_axisbelow(True)


def _edges(profile: ClassProfile) -> dict[str, tuple[float, float]]:
    """Bounds of each group on the axis of counts, between the whole numbers."""
    tail, head = profile.tail_max - 0.5, profile.head_min - 0.5
    return {"tail": (0.0, tail), "medium": (tail, head), "head": (head, np.inf)}


def _bands(ax: Axes, profile: ClassProfile) -> None:
    left, right = ax.get_xlim()
    for group, (start, end) in _edges(profile).items():
        start, end = max(start, left), min(end, right)
        n = len(profile.indices(group))
        if start >= end or not n:
            continue
        ax.axvspan(start, end, color=BANDS[group], lw=0, zorder=0)
        text = f"{group}\n{n} {'class' if n == 1 else 'classes'}"
        if np.log(end / start) > 0.06 * np.log(right / left):
            middle = np.sqrt(start * end)
            place: dict[str, Any] = {"transform": ax.get_xaxis_transform(), "ha": "center", "va": "top"}
            paper = {"facecolor": BANDS[group], "lw": 0, "pad": 1.5}
            ax.text(middle, 0.985, text, size=9, color=PALE, linespacing=1.3, zorder=1, bbox=paper, **place)
    for edge in (profile.tail_max - 0.5, profile.head_min - 0.5):
        if left < edge < right:
            ax.axvline(edge, color="#c4c4c0", lw=0.8, zorder=1)


def _beside(ax: Axes, counts: np.ndarray, profile: ClassProfile, shown: np.ndarray) -> np.ndarray:
    """Counts moved apart as little as possible (least squares) so that no two classes of a group cover each other."""
    from sklearn.isotonic import isotonic_regression

    moved = counts.copy()
    left, right = np.log(ax.get_xlim())
    unit = (right - left) / ax.get_window_extent().width  # one pixel
    for group in GROUPS:
        ids = np.intersect1d(profile.indices(group), shown).astype(int)
        if not len(ids):
            continue
        start, end = (np.clip(np.log(max(edge, 1e-9)), left, right) for edge in _edges(profile)[group])
        gap = min(18 * unit, (end - start) / (len(ids) + 1))
        ids = ids[np.argsort(counts[ids], kind="stable")]
        steps = gap * np.arange(len(ids))
        free = isotonic_regression(np.log(counts[ids]) - steps, y_min=start + gap / 2, y_max=end - gap / 2 - steps[-1])
        moved[ids] = np.exp(free + steps)
    return moved


def _frequency_axes(ax: Axes) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    left, right = ax.get_xlim()
    ticks = [m * 10.0**e for e in range(7) for m in (1, 2, 5) if left <= m * 10**e <= right]
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.set_xlabel("positives in train (log scale)", color=INK)
    ax.set_ylabel("average precision x 100", color=INK)
    _plain(ax)


def _legend(ax: Axes, labels: tuple[str, str], size: float) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], ls="", marker="o", ms=size * 0.8, mfc="white", mec=BEFORE, mew=1.2, label=labels[0]),
        Line2D([], [], ls="", marker="^", ms=size, color=RISE, label=f"{labels[1]}, higher"),
        Line2D([], [], ls="", marker="v", ms=size, color=FALL, label=f"{labels[1]}, lower"),
    ]
    ax.legend(handles=handles, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, frameon=False, fontsize=9.5)


def _summary(maps: tuple[dict[str, Any], dict[str, Any]], labels: tuple[str, str]) -> str:
    parts = [
        f"{column} {100 * maps[0][column]:.1f} \N{RIGHTWARDS ARROW} {100 * maps[1][column]:.1f}"
        for column in COLUMNS
        if maps[0][column] is not None and maps[1][column] is not None
    ]
    return "mAP:  " + "   |   ".join(parts)
