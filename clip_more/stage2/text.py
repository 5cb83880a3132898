"""What a second stage prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clip_more.evaluation.groups import COLUMNS, NOT_APPLICABLE, align
from clip_more.evaluation.results import Results
from clip_more.evaluation.single_label import TOP1
from clip_more.stage2.folder import read_selection
from clip_more.stage2.methods import KEEPS_AP
from clip_more.stage2.report import JOINT, ON


def method_text(folder: Path) -> str:
    """What a method's folder says, for people: results, differences, and how the values were chosen."""
    results, record = Results.load(folder / "results.json"), read_selection(folder)
    parts = [results.table()]
    for key, name, columns in (("map_difference", "mAP", COLUMNS), ("top1_difference", "top-1", TOP1)):
        if key in results.evaluated["stage2"]:
            title = f"{record['method']} less {JOINT}, {name}"
            parts.append(_differences(title, columns, results.evaluated["stage2"][key]))
    lines = [_chosen(record)]
    best = max((c["scores"]["total"] or 0 for c in record["candidates"] if c["scores"]), default=None)
    if best is not None and record["stage_one"] and best < (record["stage_one"]["total"] or 0):
        lines.append(
            f"note: by that, stage 1 itself is better ({100 * record['stage_one']['total']:.1f}, {100 * best:.1f})"
        )
    lines += _remarks(record)
    if record["refitted"]:
        lines.append("made again with these values on all photos of train")
    lines += [f"{name.replace('_', ' ')}: {_value(value)}" for name, value in record["log"].items()]
    if record["keeps_ap"]:
        lines.append(KEEPS_AP.format(method=record["method"]))
    lines.append("seconds: " + ", ".join(f"{name} {value:.1f}" for name, value in record["seconds"].items()))
    lines.append(f"classifier: {folder}")
    if (folder / "selection.png").is_file():
        lines.append(f"validation curve: {folder / 'selection.png'}")
    return "\n\n".join([*parts, "\n".join(lines)])


def _remarks(record: dict[str, Any]) -> list[str]:
    """What the chosen values do not say by themselves."""
    remarks, log = [], record["log"]
    tried = [candidate["values"].get("lr") for candidate in record["candidates"]]
    if len(tried) > 1 and record["chosen"].get("lr") in (tried[0], tried[-1]) and tried[0] is not None:
        remarks.append(f"note: lr {record['chosen']['lr']:g} is the end of what was tried; --lr takes one beyond")
    if "rows_cut_by_epoch" in log and max(log["rows_cut_by_epoch"], default=0) < 0.5:
        remarks.append("note: hardly a row was cut: MaxNorm did next to nothing, loss and decay made the change")
    if log.get("negative_factors"):
        remarks.append(
            f"note: {log['negative_factors']} factor(s) came out negative, which turns the order of those classes' "
            "photos round; a lower --lr keeps them positive"
        )
    return remarks


def _differences(title: str, columns: tuple[str, ...], found: dict[str, dict[str, float] | None]) -> str:
    """Paired differences by group, x 100, with their intervals."""
    cells = [found[column] for column in columns]
    measured = [f"{100 * cell['difference']:+.2f}" if cell else NOT_APPLICABLE for cell in cells]
    bounds = [f"{100 * cell['low']:+.1f} to {100 * cell['high']:+.1f}" if cell else "" for cell in cells]
    return align([[title, *columns], ["", *measured], ["  95 % interval", *bounds]])


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _chosen(record: dict[str, Any]) -> str:
    values = record["chosen"].items()
    chosen = ", ".join(f"{name} {_value(value)}" for name, value in values)
    if record["selection"] == "given":
        return f"given: {chosen}"
    on = f"{record['photos']:,} {ON[record['selection']]}, {record['fewest_of_a_class']} of the rarest class"
    return f"chosen: {chosen}, by {record['measure']} on {on}"
