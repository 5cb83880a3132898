"""Figures: AP per class against train frequency, and the course of a training run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from clip_more.data.profile import ClassProfile
from clip_more.evaluation.class_labels import name_classes
from clip_more.evaluation.groups import COLUMNS, GROUPS, split_map
from clip_more.evaluation.run_events import read_events
from clip_more.files import written_aside

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart with every common colour blindness. Direction is also a shape, group a place.
BEFORE, RISE, FALL, INK, PALE = "#8a8a8a", "#0072b2", "#d55e00", "#222222", "#6f6f6f"
LINES = {"total": INK, "head": "#0072b2", "medium": "#009e73", "tail": "#d55e00"}
ABOVE: dict[str, Any] = {
    "loc": "lower right",
    "bbox_to_anchor": (1.01, 0.985),
    "frameon": False,
    "fontsize": 9,
    "handlelength": 1.6,
}
TAIL_SHARE = "Tail share ||BA|| / ||W||"
PARTS = {"general": (INK, "-"), "tail": ("#d55e00", "-"), "head": ("#0072b2", "-")}
# A colour a kind of layer; the tower is the stroke.
LAYERS = {
    f"{tower}.{kind}": (colour, style)
    for tower, style in (("vision", "-"), ("text", (0, (2, 1.5))))
    for kind, colour in (("attention", "#0072b2"), ("mlp", "#d55e00"), ("embedding", "#009e73"))
} | {"projection": (INK, "-")}
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


def plot_training(metrics: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Draw the course of a run over the steps of a ``metrics.jsonl``, to a PNG.

    Loss parts, alpha, learning rate, gradient norms by part, the tail's share by group of layers, and mAP by group:
    those that the file holds. What a resumed run did again counts as last written; lines that were cut in the middle
    are left out.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        FileNotFoundError: There is no such file.
        ValueError: A line is not a JSON object, or there is no ``train`` or ``eval`` event.
    """
    events = read_events(metrics)
    train = {event["step"]: event for event in events if event.get("event") == "train"}
    evals = {(event["split"], event["step"]): event for event in events if event.get("event") == "eval"}
    if not train and not evals:
        raise ValueError(f"{metrics} holds no 'train' or 'eval' event yet, so there is nothing to draw.")
    rows = [train[step] for step in sorted(train)]
    wide = any(row.get("discrepancy") is not None for row in rows)
    panels = ["Loss", "Learning rate"]
    panels += ["Gradient norm"] if any(row.get("gradient_norms") for row in rows) else []
    panels += ["Discrepancy", "Discrepancy weight alpha"] if wide else []
    panels += [TAIL_SHARE] if any(row.get("tail_share") for row in rows) else []
    figure, axes = _panels(panels, ["mAP x 100"] if evals else [])
    _course(axes["Loss"], rows, "loss", INK, smooth=True)
    _course(axes["Learning rate"], rows, "lr", RISE)
    if "Gradient norm" in axes:
        _courses(axes["Gradient norm"], rows, "gradient_norms", PARTS, smooth=True)
        _whole_decades(axes["Gradient norm"])
        axes["Gradient norm"].legend(ncols=len(PARTS), **ABOVE | {"handlelength": 1.1, "columnspacing": 1.1})
    if TAIL_SHARE in axes:
        _courses(axes[TAIL_SHARE], rows, "tail_share", LAYERS)
        axes[TAIL_SHARE].set_ylim(0, 1.5 * axes[TAIL_SHARE].get_ylim()[1])  # room for the legend above the lines
        axes[TAIL_SHARE].legend(ncols=2, loc="upper left", frameon=False, fontsize=8.5)
    if evals:
        _maps_over_steps(axes["mAP x 100"], list(evals.values()))
    if wide:
        _course(axes["Loss"], rows, "base", RISE, smooth=True, style=(0, (2, 2)))  # mostly upon the loss itself
        _course(axes["Discrepancy"], rows, "discrepancy", FALL, smooth=True)
        _course(axes["Discrepancy weight alpha"], rows, "alpha", FALL)
        axes["Loss"].legend(ncols=2, **ABOVE)
    last = max(step for step in (*train, *(step for _, step in evals)))
    for name, ax in axes.items():
        ax.set_title(name, loc="left", size=11, weight="bold", color=INK)
        ax.set_xlim(-0.02 * last, 1.02 * last)
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        _plain(ax)
        if name not in ("Loss", "mAP x 100", "Gradient norm") and ax.get_ylim()[0] > 0:
            ax.set_ylim(bottom=0)  # a constant fills the axis with nothing otherwise
    _save(figure, path)


def _panels(small: Sequence[str], tall: Sequence[str]) -> tuple[Figure, dict[str, Axes]]:
    """A new figure and its axes by name: small panels column by column, then those as tall as the figure."""
    height = 3 if len(small) in (3, 5, 6) else 2
    columns = -(-len(small) // height) + len(tall)
    width = 1 + 4.2 * columns
    figure = _figure((width, 3.3 * height))
    bottom, top = 0.56 / (3.3 * height), 1 - 0.5 / (3.3 * height)
    grid = figure.add_gridspec(
        height, columns, left=0.8 / width, bottom=bottom, right=0.985, top=top, hspace=0.28, wspace=0.26
    )
    places = {name: grid[n % height, n // height] for n, name in enumerate(small)}
    places |= {name: grid[:, n - len(tall)] for n, name in enumerate(tall)}
    axes = {name: figure.add_subplot(place) for name, place in places.items()}
    for name, place in places.items():
        below = {other.colspan.start for other in places.values() if other.rowspan.start == place.rowspan.stop}
        if place.colspan.start not in below:
            axes[name].set_xlabel("optimiser step", color=INK)
    return figure, axes


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


def _course(
    ax: Axes, rows: Sequence[dict[str, Any]], key: str, colour: str, *, smooth: bool = False, style: Any = "-"
) -> None:
    points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    if not points:
        return
    steps, values = np.array(points, dtype=float).T
    window = len(values) // 40
    if smooth and window > 1:
        ax.plot(steps, values, color=colour, lw=0.7, alpha=0.25)
        total = np.cumsum(np.concatenate([[0.0], values]))
        steps, values = steps[window - 1 :], (total[window:] - total[:-window]) / window
    marker = "o" if len(values) == 1 else None
    ax.plot(steps, values, color=colour, lw=1.8, ls=style, label=key, marker=marker)


def _courses(
    ax: Axes, rows: Sequence[dict[str, Any]], key: str, lines: dict[str, tuple[str, Any]], *, smooth: bool = False
) -> None:
    """The values by name below `key`, a line each."""
    for name, (colour, style) in lines.items():
        points = [{"step": row["step"], name: (row.get(key) or {}).get(name)} for row in rows]
        _course(ax, points, name, colour, smooth=smooth, style=style)


def _whole_decades(ax: Axes) -> None:
    """A log axis between two powers of ten, so that at least two ticks have a label."""
    low, high = ax.dataLim.minposy, ax.dataLim.ymax
    if low <= high:  # something is above zero
        ax.set_yscale("log")
        ax.set_ylim(10 ** np.floor(np.log10(low)), 10 ** (np.floor(np.log10(high)) + 1))


def _maps_over_steps(ax: Axes, events: Sequence[dict[str, Any]]) -> None:
    from matplotlib.lines import Line2D

    splits = dict(zip(dict.fromkeys(event["split"] for event in events), ("-", "--", ":"), strict=False))
    for split, style in splits.items():
        for column in COLUMNS:
            points = {
                e["step"]: 100 * e["map"][column]
                for e in events
                if e["split"] == split and e["map"].get(column) is not None
            }
            if points:
                steps = sorted(points)
                values = [points[step] for step in steps]
                ax.plot(steps, values, style, color=LINES[column], lw=1.8, marker="o", ms=3.5)
    drawn = {line.get_color() for line in ax.lines}
    handles = [Line2D([], [], color=LINES[c], lw=2, label=c) for c in COLUMNS if LINES[c] in drawn]
    if len(splits) > 1:
        handles += [Line2D([], [], color=PALE, ls=style, label=split) for split, style in splits.items()]
    if handles:
        ax.legend(handles=handles, ncols=(len(handles) + 1) // 2, **ABOVE)
