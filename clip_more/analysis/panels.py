"""The panels of the analysis page, each drawn upon axes of its own from the plain measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from clip_more.analysis.norms import class_ranks
from clip_more.analysis.point_names import NAMED, name_points
from clip_more.data.profile import GROUPS, ClassProfile
from clip_more.evaluation.plots import BEFORE, FALL, INK, LINES, PALE, RISE, _plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_TICKS = 28
MODELS = {"general": BEFORE, "merged": RISE}


def heatmap(ax: Axes, found: Mapping[str, Any], profile: ClassProfile) -> None:
    """Mean cosines between classes, the most common first, with lines between groups."""
    matrix = _numbers(found["models"]["merged"]["cosines"]["heatmap"])
    shown = np.ma.masked_invalid(matrix)
    side, classes = len(matrix), len(profile.names)
    low, high = (float(shown.min()), float(shown.max())) if shown.count() else (0.0, 1.0)
    image = ax.imshow(shown, cmap="viridis", vmin=low, vmax=max(high, low + 1e-3), interpolation="nearest")
    ax.set_facecolor("#b8b8b4")  # cells without a pair of photos
    bar = ax.figure.colorbar(image, ax=ax, fraction=0.046, pad=0.03)
    bar.ax.tick_params(labelsize=8.5, colors=PALE, labelcolor=INK)
    bar.outline.set_visible(False)
    order = np.argsort(class_ranks(np.asarray(profile.counts)))
    if classes <= NAMED:
        names = [_short(profile.names[c], 14) for c in order]
        ax.set_xticks(range(side), names, rotation=45, ha="right", rotation_mode="anchor")
        ax.set_yticks(range(side), names)
    ends = np.cumsum([len(profile.indices(group)) for group in GROUPS]) * side / classes
    starts = np.concatenate([[0.0], ends[:-1]])
    for end in ends[:-1]:
        if 0 < end < side:
            ax.axhline(end - 0.5, color="white", lw=1.2)
            ax.axvline(end - 0.5, color="white", lw=1.2)
    if classes > NAMED:
        there = [k for k in range(len(GROUPS)) if ends[k] > starts[k]]
        middles = [(starts[k] + ends[k]) / 2 - 0.5 for k in there]
        ax.set_xticks(middles, [GROUPS[k] for k in there])
        ax.set_yticks(middles, [GROUPS[k] for k in there], rotation=90, va="center")
    ax.tick_params(length=0, labelsize=8.5, colors=INK)
    ax.spines[:].set_visible(False)


def fisher(ax: Axes, found: Mapping[str, Any], profile: ClassProfile) -> None:
    """Bars of the one-vs-rest ratios by group, a colour a model."""
    models = [name for name in MODELS if name in found["models"]]
    means = {
        name: found["models"][name]["fisher"]["one_vs_rest"]["by_group"]
        | {"all": found["models"][name]["fisher"]["one_vs_rest"]["ratio"]}
        for name in models
    }
    groups = [group for group in ("all", *GROUPS) if any(means[name][group] is not None for name in models)]
    width = 0.8 / len(models)
    for m, name in enumerate(models):
        heights = np.array([np.nan if means[name][group] is None else means[name][group] for group in groups], float)
        places = np.arange(len(groups)) + (m - (len(models) - 1) / 2) * width
        bars = ax.bar(places, np.nan_to_num(heights), width * 0.92, color=MODELS[name], label=name)
        ax.bar_label(bars, [f"{h:.3g}" if np.isfinite(h) else "" for h in heights], size=8.5, color=INK, padding=2)
    ax.set_xticks(range(len(groups)), groups)
    ax.margins(y=0.2)
    own = found["models"]["merged"]["fisher"]["one_vs_rest"]
    told = f"scatter of rank {own['rank']} of {own['size']}, ridge {own['ridge']:g}"
    if "all_classes" in found["models"]["merged"]["fisher"]:
        told += f"; all classes at once: {found['models']['merged']['fisher']['all_classes']['ratio']:.3g}"
    ax.set_xlabel(told, color=PALE, size=9)
    _plain(ax)
    if len(models) > 1:
        ax.legend(frameon=False, fontsize=9, ncols=2, loc="upper right")


def feature_norms(ax: Axes, found: Mapping[str, Any], profile: ClassProfile) -> None:
    """Length of the mean feature of each class against its rank."""
    _against_rank(ax, found["models"]["merged"]["feature_norm"]["by_class"], profile)


def classifier_norms(ax: Axes, found: Mapping[str, Any], profile: ClassProfile) -> None:
    """Length of the classifier's row of each class against its rank."""
    _against_rank(ax, found["models"]["merged"]["classifier_norm"]["by_class"], profile)


def classifier_biases(ax: Axes, found: Mapping[str, Any], profile: ClassProfile) -> None:
    """Bias of each class against its rank."""
    _against_rank(ax, found["models"]["merged"]["classifier_bias"]["by_class"], profile)


def collapse_table(ax: Axes, found: Mapping[str, Any], profile: ClassProfile) -> None:
    """NC1 to NC4 of every model as a table, with where each goes as features collapse."""
    ax.axis("off")
    models = [name for name in MODELS if found["models"].get(name, {}).get("collapse")]
    rows = (
        ("NC1", "spread within over between", "nc1", "0"),
        ("NC2", "lengths of means, std / mean", "nc2_norms", "0"),
        ("NC2", "angles, off a simplex by", "nc2_angles", "0"),
        ("NC3", "classifier from class means", "nc3", "0"),
        ("NC3", "the same, mean row off", "nc3_centred", "0"),
        ("NC4", "agrees with nearest mean", "nc4", "1"),
    )
    places = {name: 0.68 + 0.17 * m for m, name in enumerate(models)} if len(models) > 1 else {models[0]: 0.8}
    ax.text(0.56, 0.93, "collapsed", size=9, color=PALE, ha="center", transform=ax.transAxes)
    for name, x in places.items():
        ax.text(x + 0.06, 0.93, name, size=9.5, weight="bold", color=INK, ha="center", transform=ax.transAxes)
    for n, (sign, meaning, key, limit) in enumerate(rows):
        y = 0.80 - 0.145 * n
        ax.plot([0, 1], [y + 0.085] * 2, color="#dddddd", lw=0.8, transform=ax.transAxes, clip_on=False)
        ax.text(0, y, sign, size=10, weight="bold", color=INK, va="center", transform=ax.transAxes)
        ax.text(0.09, y, meaning, size=9, color=INK, va="center", transform=ax.transAxes)
        ax.text(0.56, y, limit, size=9.5, color=PALE, ha="center", va="center", transform=ax.transAxes)
        for name, x in places.items():
            value = found["models"][name]["collapse"][key]
            ax.text(x + 0.06, y, f"{value:.3g}", size=10, color=INK, ha="center", va="center", transform=ax.transAxes)


def discrepancy(ax: Axes, found: Mapping[str, Any], profile: ClassProfile) -> None:
    """Discrepancy of each class on its photos against its train count."""
    _against_count(ax, found["mechanism"]["discrepancy_on_positives"], profile, 1.0, floor=0.0)


def lost(ax: Axes, found: Mapping[str, Any], profile: ClassProfile) -> None:
    """What each class loses without B A against its train count."""
    ax.axhline(0, color=INK, lw=0.9, zorder=1)
    _against_count(ax, found["mechanism"]["lost"], profile, 100.0, least=0.1)


def tail_share(ax: Axes, found: Mapping[str, Any], profile: ClassProfile) -> None:
    """Share of every layer in the order of the network, a colour a kind of layer."""
    from clip_more.analysis.tail_layers import layer_place

    layers = found["tail_layers"]
    places = [layer_place(layer["name"]) for layer in layers]
    shares = 100 * np.array([layer["share"] for layer in layers])
    kinds = {"attention": RISE, "mlp": FALL, "embedding": LINES["medium"], "projection": INK, "convolution": RISE}
    kinds |= {"other": BEFORE}
    for kind, colour in kinds.items():
        own = [n for n, place in enumerate(places) if place.kind == kind]
        if own:
            ax.plot(own, shares[own], "o", ms=float(np.clip(400 / len(layers), 3.5, 7)), color=colour, label=kind)
    ax.vlines(range(len(layers)), 0, shares, color="#cfcfca", lw=0.8, zorder=0)
    starts = [n for n, place in enumerate(places) if n == 0 or place.block != places[n - 1].block]
    step = -(-len(starts) // MOST_TICKS)
    ax.set_xticks(starts[::step], [places[n].block_label for n in starts[::step]], size=8)
    towers = [n for n, place in enumerate(places) if n == 0 or place.tower != places[n - 1].tower]
    for start, end in zip(towers, [*towers[1:], len(layers)], strict=True):
        if start:
            ax.axvline(start - 0.5, color="#a8a8a2", lw=0.9)
        if places[start].tower:
            middle = (start + end - 1) / 2
            ax.text(middle, -0.12, places[start].tower, transform=ax.get_xaxis_transform(), ha="center", size=9.5)
    ax.set_xlim(-0.7, len(layers) - 0.3)
    ax.set_ylim(0, 1.25 * max(float(shares.max()), 1e-6))
    ax.set_ylabel("%", color=INK)
    _plain(ax)
    ax.legend(frameon=False, fontsize=8.5, ncols=4, loc="upper left", columnspacing=1.0, handletextpad=0.2)


def forgetting(ax: Axes, found: Mapping[str, Any], profile: ClassProfile) -> None:
    """Mean forgetting score by group, with the part of photos that were never right hatched."""
    own = found["forgetting"]
    groups = [group for group in ("total", *GROUPS) if own["score"][group] is not None]
    scores = [own["score"][group] for group in groups]
    never = [own["never"][group] * own["epochs"] for group in groups]
    ax.bar(groups, scores, 0.62, color=[LINES[group] for group in groups])
    ax.bar(groups, never, 0.62, fill=False, hatch="////", edgecolor="white", lw=0)
    for n, (score, share) in enumerate(zip(scores, (own["never"][group] for group in groups), strict=True)):
        text = f"{score:.2f}" + (f"\n{100 * share:.0f} % never" if share > 0 else "")
        ax.text(n, score, text, size=8.5, color=INK, ha="center", va="bottom")
    ax.margins(y=0.22)
    _plain(ax)


def _against_rank(ax: Axes, by_class: Sequence[float | None], profile: ClassProfile) -> None:
    values, ranks = _numbers(by_class), class_ranks(np.asarray(profile.counts))
    _points(ax, ranks.astype(float), values, profile)
    ax.set_xlabel("rank by train count (0: the most common class)", color=INK, size=9.5)
    ax.set_xlim(-0.04 * len(ranks) - 0.4, 1.04 * len(ranks) - 0.6)
    _room(ax, values)
    _plain(ax)
    ax.locator_params(axis="x", integer=True)
    name_points(ax, [_short(name, 18) for name in profile.names], ranks.astype(float), values)


def _against_count(
    ax: Axes,
    contrast: Mapping[str, Any],
    profile: ClassProfile,
    scale: float,
    *,
    floor: float | None = None,
    least: float = 0.0,
) -> None:
    """Values times `scale`; the y axis begins at `floor` where it is given, and spans `least` at least."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    values, counts = scale * _numbers(contrast["by_class"]), np.maximum(np.asarray(profile.counts, float), 0.5)
    there = np.isfinite(values)
    ax.set_xscale("log")
    if not there.any():
        return
    left, right = counts.min() / 1.35, counts.max() * 1.35
    ax.set_xlim(left, right)
    ticks = [m * 10.0**e for e in range(7) for m in (1, 2, 5) if left <= m * 10**e <= right]
    ticks = [tick for tick in ticks if str(tick)[0] == "1"] if len(ticks) > 8 else ticks
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    for group in GROUPS:
        own = profile.indices(group)
        if own and contrast["by_group"][group] is not None:
            low, high = counts[own].min() / 1.12, counts[own].max() * 1.12
            ax.hlines(scale * contrast["by_group"][group], low, high, color=LINES[group], lw=2.2, alpha=0.55, zorder=1)
    _points(ax, counts, values, profile)
    ax.set_xlabel("positives in train (log scale); bars: means of groups", color=INK, size=9.5)
    _room(ax, values, least)
    if floor is not None:
        ax.set_ylim(bottom=floor)
    _plain(ax)
    name_points(ax, [_short(name, 18) for name in profile.names], counts, values)


def _points(ax: Axes, x: np.ndarray, values: np.ndarray, profile: ClassProfile) -> None:
    size = float(np.clip(300 / len(values), 4.5, 8))
    for group in GROUPS:
        own = np.asarray(profile.indices(group), dtype=int)
        own = own[np.isfinite(values[own])]
        ax.plot(x[own], values[own], "o", ms=size, color=LINES[group], mec="white", mew=0.5, zorder=3)


def _room(ax: Axes, values: np.ndarray, least: float = 0.0) -> None:
    """Space above and below for names; differences in the last digits are no mountains."""
    values = values[np.isfinite(values)]
    if not len(values):
        return
    low, high = min(float(values.min()), ax.dataLim.y0), max(float(values.max()), ax.dataLim.y1)
    span = max(high - low, 1e-3 * max(abs(low), abs(high)), least, 1e-9)
    middle = (low + high) / 2
    ax.set_ylim(middle - 0.64 * span, middle + 0.74 * span)


def _numbers(values: Any) -> np.ndarray:
    """Plain values, None as NaN."""
    return np.array(values, dtype=float)


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}\N{HORIZONTAL ELLIPSIS}"
