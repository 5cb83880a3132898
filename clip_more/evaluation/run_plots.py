"""The figure of a training run's course."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from clip_more.evaluation.groups import COLUMNS
from clip_more.evaluation.plots import FALL, INK, LINES, PALE, RISE, _figure, _plain, _save
from clip_more.evaluation.run_events import read_events

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
