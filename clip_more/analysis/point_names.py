"""Names beside the points of a small panel: of all classes where they are few, of those that stand out where not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from clip_more.evaluation.class_labels import name_classes
from clip_more.evaluation.plots import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMED = 20  # classes up to which all are named
EXTREMES = 8  # of more, at most so many, farthest from the median first
SIZE, PAD = 8.5, 5.0  # points


def name_points(ax: Axes, names: Sequence[str], x: np.ndarray, values: np.ndarray) -> None:
    """Name points (C,) on axes whose limits are final; NaN has no point.

    Of many classes a name is put where it covers no point and no other name, or not at all.
    """
    there = np.flatnonzero(np.isfinite(values)).tolist()
    if len(there) <= NAMED:
        name_classes(ax, [names[c] for c in there], x[there], values[there], values[there], colour=INK)
        return
    from matplotlib.font_manager import FontProperties

    scale = ax.figure.dpi / 72  # pixels a point
    renderer = ax.figure.canvas.get_renderer()  # type: ignore[attr-defined]
    font = FontProperties(size=SIZE)
    points = ax.transData.transform(np.stack([x[there], values[there]], axis=1))
    frame = ax.get_window_extent()
    taken = np.stack([points - 3 * scale, points + 3 * scale], axis=1)  # (T, 2, 2)
    for n in np.argsort(-np.abs(values[there] - np.median(values[there])), kind="stable")[:EXTREMES]:
        width, _, _ = renderer.get_text_width_height_descent(names[there[n]], font, ismath=False)
        half = np.array([width + 4 * scale, (SIZE + 2) * scale]) / 2
        beside, beyond = half[0] + PAD * scale, half[1] + PAD * scale
        for offset in ((0, beyond), (0, -beyond), (beside, 0), (-beside, 0)):
            centre = points[n] + offset
            box = np.stack([centre - half, centre + half])
            inside = box[0, 0] >= frame.x0 and box[1, 0] <= frame.x1 and box[0, 1] >= frame.y0 and box[1, 1] <= frame.y1
            others = np.delete(taken, n, axis=0)
            covers = ((box[0] < others[:, 1]) & (others[:, 0] < box[1])).all(axis=1).any()
            if inside and not covers:
                spot = ax.transData.inverted().transform(centre)
                ax.text(spot[0], spot[1], names[there[n]], size=SIZE, color=INK, ha="center", va="center", zorder=5)
                taken = np.concatenate([taken, box[None]])
                break
