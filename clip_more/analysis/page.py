"""The page of figures of one analysed run: panels side by side, the mechanism test and the diagnosis below."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from clip_more.analysis import panels
from clip_more.data.profile import GROUPS, ClassProfile
from clip_more.evaluation.plots import INK, LINES, PALE, _figure, _save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Panel = Callable[["Axes", Mapping[str, Any], ClassProfile], None]

COLUMNS, WIDTH, HEIGHT = 3, 5.6, 4.5  # inches a panel
HEADER, LINE = 1.0, 0.225
TITLES = {
    "head_falls": "Head falls",
    "no_tail_gain": "No tail gain",
    "instability": "Instability",
    "nothing_wrong": "Nothing wrong seen",
    "cannot_tell": "Cannot tell",
}


def draw_page(found: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Draw what `analyse_run` returned (or what its JSON holds) as one PNG; what the run has no data for is left out.

    Args:
        found: The measures.
        path: The PNG; complete or absent.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    profile = ClassProfile.from_dict(found["profile"])
    shown = _panels(found)
    rows = -(-len(shown) // COLUMNS)
    text = _text(found)
    below = LINE * sum(1 + len(body) for _, body in text) + 0.2 * len(text) + 0.35
    width, height = COLUMNS * WIDTH, HEADER + rows * HEIGHT + below
    figure = _figure((width, height))
    grid = figure.add_gridspec(
        rows, COLUMNS, left=0.75 / width, right=1 - 0.3 / width, top=1 - (HEADER + 0.4) / height,
        bottom=(below + 0.65) / height, wspace=0.24, hspace=0.42,
    )  # fmt: skip
    for n, (title, note, draw) in enumerate(shown):
        column = n % COLUMNS
        end = COLUMNS if n == len(shown) - 1 and draw is panels.tail_share else column + 1  # it has many layers to show
        ax = figure.add_subplot(grid[n // COLUMNS, column:end])
        ax.set_title(title, loc="left", size=11.5, weight="bold", color=INK, pad=21)
        ax.text(0, 1.02, note, transform=ax.transAxes, size=9, color=PALE, va="bottom")
        draw(ax, found, profile)
    _head(figure, found, profile, width, height)
    _write(figure, text, width, height, below)
    _save(figure, path)


def _panels(found: Mapping[str, Any]) -> list[tuple[str, str, Panel]]:
    """Title, note and drawing of each panel that there is data for, in the order of the page."""
    merged = found["models"]["merged"]
    shown: list[tuple[str, str, Panel]] = [
        ("Cosines between classes", _heatmap_note(merged), panels.heatmap),
        ("Fisher's ratio, each class against the rest", "mean by group; higher: easier to separate", panels.fisher),
        ("Length of the mean feature", _trend_note(merged["feature_norm"]), panels.feature_norms),
    ]
    if merged.get("classifier_norm") and merged["row_norms_matter"]:
        note = _trend_note(merged["classifier_norm"])
        shown.append(("Length of the classifier's rows", note, panels.classifier_norms))
    elif merged.get("classifier_bias"):
        note = f"rows have one length here; {_trend_note(merged['classifier_bias'])}"
        shown.append(("Bias of the classifier", note, panels.classifier_biases))
    if any(model.get("collapse") for model in found["models"].values()):
        taken = merged.get("collapse") or {"photos": 0, "classes": 0}
        note = f"{taken['photos']:,} photos with one label, of {taken['classes']} classes"
        shown.append(("Neural collapse", note, panels.collapse_table))
    if mechanism := found.get("mechanism"):
        lost = "AP" if mechanism["lost_is"] == "average precision" else "Accuracy"
        shown.append((
            "Discrepancy by class",
            "mean of (z with B A - z without)² on the class's test photos",
            panels.discrepancy,
        ))  # fmt: skip
        shown.append((f"{lost} lost when B A is removed", "merged less general, in points", panels.lost))
    if forgetting := found.get("forgetting"):
        note = f"mean of train photos over {forgetting['epochs']} epochs; hatched: never right"
        shown.append(("Forgetting score", note, panels.forgetting))
    if found.get("tail_layers"):
        shown.append(("Tail share by layer", "||B A|| over ||W + B A||, input to output", panels.tail_share))
    return shown


def _heatmap_note(model: Mapping[str, Any]) -> str:
    pairs = model["cosines"]["other_pairs"]
    parts = [
        f"{name} {pairs[key]:.2f}"
        for name, key in (("within a class", "diagonal"), ("between", "off_diagonal"))
        if pairs[key] is not None
    ]
    return "mean cosine of two photos: " + ", ".join(parts)


def _trend_note(trend: Mapping[str, Any]) -> str:
    if trend["spearman"] is None:
        return "no rank correlation with train counts can be taken"
    return f"Spearman with train counts {trend['spearman']:+.2f} (p {_p(trend['p'])})"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def _head(figure: Figure, found: Mapping[str, Any], profile: ClassProfile, width: float, height: float) -> None:
    from matplotlib.lines import Line2D

    left = 0.3 / width
    figure.text(left, 1 - 0.42 / height, f"Analysis of {found['run']}", size=17, weight="bold", color=INK)
    photos = found["models"]["merged"]["photos"]
    told = f"{photos:,} {found['split']} photos, {len(profile.names)} classes, tuning: {found['tuning']}"
    figure.text(left, 1 - 0.76 / height, told, size=11, color=PALE)
    handles = [
        Line2D([], [], ls="", marker="o", ms=8, color=LINES[group], label=f"{group} ({len(profile.indices(group))})")
        for group in GROUPS
        if profile.indices(group)
    ]
    figure.legend(
        handles=handles, loc="upper right", bbox_to_anchor=(1 - 0.25 / width, 1 - 0.25 / height), ncols=3,
        frameon=False, fontsize=11, title="classes", title_fontsize=9.5,
    )  # fmt: skip


def _text(found: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Headings and wrapped lines below the panels."""
    columns = int(COLUMNS * WIDTH * 12.3)
    blocks = []
    if "mechanism" in found:
        sentences = mechanism_sentences(found["mechanism"])
        blocks.append(("Mechanism test: is B A used more for tail than for head classes?", sentences))
    for finding in found["diagnosis"]:
        keys = f" Change: {', '.join(finding['keys'])}." if finding["keys"] else ""
        blocks.append((f"Diagnosis: {TITLES[finding['sign']]}", [finding["text"] + keys]))
    return [
        (head, [line for text in body for line in textwrap.wrap(text.replace(" %", "\N{NO-BREAK SPACE}%"), columns)])
        for head, body in blocks
    ]


def mechanism_sentences(mechanism: Mapping[str, Any]) -> list[str]:
    """The mechanism test in words, a sentence a figure."""
    sentences = []
    for key, name, scale, unit in (
        ("discrepancy_on_positives", "Discrepancy on a class's photos", 1.0, ""),
        ("discrepancy_on_all", "Discrepancy on all photos", 1.0, ""),
        ("lost", f"Loss of {mechanism['lost_is']} without B A", 100.0, " points"),
    ):
        own = mechanism[key]
        groups = ", ".join(
            f"{group} {scale * own['by_group'][group]:.3g}" for group in GROUPS if own["by_group"][group] is not None
        )
        if own["difference"] is None:
            sentences.append(f"{name}: {groups}{unit}; head or tail has no class, so there is no test.")
            continue
        text = f"{name}: {groups}{unit}; tail less head {scale * own['difference']:+.3g}"
        if own["interval"] is not None:
            text += f" (95 % over test photos: {scale * own['interval'][0]:+.3g} to {scale * own['interval'][1]:+.3g})"
        text += f", p {_p(own['p'])} over classes: {'larger for tail' if own['larger'] else 'not larger for tail'}."
        sentences.append(text)
    used = f"B A moves logits by {100 * mechanism['relative_discrepancy']:.2g} % of what they vary by."
    if mechanism.get("general_part_moved"):
        sentences.append(
            "No verdict: by discrepancy_gradient L_MORE moved W_g, too, so a loss without B A is not what MORE did for "
            f"a group; a run under tuning: full, named with --baseline, shows that. {used}"
        )
    elif mechanism["verdict"] is not None:
        sentences.append(f"The mechanism is {mechanism['verdict']}. {used}")
    return sentences


def _write(figure: Figure, text: list[tuple[str, list[str]]], width: float, height: float, below: float) -> None:
    y = below - 0.2
    for heading, lines in text:
        figure.text(0.3 / width, y / height, heading, size=11.5, weight="bold", color=INK, va="top")
        y -= LINE
        for line in lines:
            figure.text(0.3 / width, y / height, line, size=10.5, color=INK, va="top")
            y -= LINE
        y -= 0.2
