"""The runs of a folder: how far each has come, and what it reached."""

from __future__ import annotations

import hashlib
import json
import textwrap
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from clip_more.evaluation.groups import COLUMNS, NOT_APPLICABLE, align
from clip_more.evaluation.results import Results
from clip_more.evaluation.run_events import read_events

WIDTH = 120
SHORTEST_NAME = 16
_MARKS = ("config.yaml", "metrics.jsonl", "checkpoints", "report")


@dataclass(frozen=True)
class RunState:
    """One run, as its folder shows it.

    Attributes:
        name: Of the folder.
        folder: Its path.
        state: ``finished``, ``running``, ``stopped`` (it was asked to, and saved), ``failed``, ``interrupted`` (it
            ended without a word), ``not started`` or ``damaged``.
        step: Optimiser steps done, those lost with an interruption not counted.
        total: Optimiser steps in all, once the run has said.
        map: ``total``, ``head``, ``medium``, ``tail`` in 0..1 of the weights in use, ``None`` where there is no AP.
        split: What `map` was taken on: ``test`` from the report, or that of the last evaluation while training.
        test_set: The same for runs whose report is on the same photos, labels and groups, by the same protocol.
        written: When a file of the run last changed, in seconds since 1970.
        reason: Why it failed, which signal stopped it, or what is damaged.
    """

    name: str
    folder: str
    state: str
    step: int | None = None
    total: int | None = None
    map: dict[str, float | None] | None = None
    split: str | None = None
    test_set: str | None = None
    written: float = 0.0
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def list_runs(folder: Path) -> list[RunState]:
    """The runs below `folder`, or `folder` itself where it is one; the last changed first.

    A run that cannot be read is among them, with what is wrong.

    Raises:
        FileNotFoundError: If there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; runs are in the output_dir of their recipe")
    itself = (folder / "config.yaml").is_file()
    folders = [folder] if itself else [path for path in folder.iterdir() if _is_run(path)]
    return sorted(map(_state, folders), key=lambda run: (-run.written, run.name))


def runs_table(states: Sequence[RunState]) -> str:
    """Runs as text of at most 120 columns, mAP times 100; reasons below their run, in full in :class:`RunState`.

    ``*`` marks the best figure among finished runs that are judged on the same test photos alike.
    """
    if not states:
        return "no runs"
    best = _best(states)
    columns = [
        ["state", *(run.state for run in states)],
        _right(["step", *map(_progress, states)]),
        *(_right([f"mAP {c}" if c == "total" else c, *(_figure(run, c, best) for run in states)]) for c in COLUMNS),
        ["on", *(_plain(run.split or "")[:8] for run in states)],
        ["last change", *(time.strftime("%Y-%m-%d %H:%M", time.localtime(run.written)) for run in states)],
    ]
    rest = sum(3 + max(map(len, column)) for column in columns)
    names = ["run", *(_cut(_plain(run.name), max(SHORTEST_NAME, WIDTH - rest)) for run in states)]
    head, rule, *rows = align(list(zip(names, *columns, strict=True))).split("\n")
    lines = [head, rule]
    for run, row in zip(states, rows, strict=True):
        lines.append(row)
        if run.reason and run.state != "stopped":
            lines += _reason(run.reason)
    if best:
        lines += ["", "* the best of the finished runs on the same test photos, judged alike"]
    return "\n".join(lines)


def _is_run(folder: Path) -> bool:
    try:
        return not folder.name.startswith(".") and any((folder / mark).exists() for mark in _MARKS)
    except OSError:  # closed to us: better listed than passed over
        return True


def _state(folder: Path) -> RunState:
    try:
        return _read(folder)
    except OSError as error:
        return RunState(folder.name, str(folder), "damaged", reason=f"the folder cannot be read ({_sentence(error)})")


def _read(folder: Path) -> RunState:
    from clip_more.training.run_lock import locked

    problems: list[str] = []
    if (sentence := _recipe_problem(folder / "config.yaml")) is not None:
        problems.append(sentence)
    events: list[dict[str, Any]] = []
    if (folder / "metrics.jsonl").exists():
        try:
            events = read_events(folder / "metrics.jsonl")
        except (OSError, ValueError) as error:
            problems.append(_sentence(error))
    values: dict[str, Any] = {"state": "interrupted" if events else "not started"}
    values |= _progress_of(events) | _last_evaluation(events)
    if events and events[-1].get("event") in ("stopped", "failed"):
        values |= {"state": events[-1]["event"], "reason": str(events[-1].get("reason") or events[-1].get("signal"))}
    if locked(folder):
        values |= {"state": "running", "reason": None}
    if (folder / "report" / "results.json").exists():
        try:
            values |= {"state": "finished", "reason": None, **_report(folder / "report" / "results.json")}
        except (OSError, ValueError) as error:
            problems.append(_sentence(error))
    if problems:
        values["state"] = "running" if values["state"] == "running" else "damaged"
        values["reason"] = "; ".join(problems)
    return RunState(folder.name, str(folder), written=_last_change(folder), **values)


def _recipe_problem(recipe: Path) -> str | None:
    try:
        values = yaml.load(recipe.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except FileNotFoundError:
        return f"{recipe} is missing: the run cannot go on"
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        return f"{recipe} cannot be read ({_sentence(error)}): the run cannot go on"
    if not isinstance(values, dict) or not isinstance(values.get("config"), dict):
        return f"{recipe} is not the config of a run: the run cannot go on"
    return None


def _progress_of(events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    done = [e["step"] for e in events if e.get("event") != "failed" and isinstance(e.get("step"), int)]
    totals = [e["total"] for e in events if e.get("event") == "start" and isinstance(e.get("total"), int)]
    return {"step": done[-1] if done else None, "total": totals[-1] if totals else None}


def _last_evaluation(events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    for event in reversed(events):
        if event.get("event") == "eval" and isinstance(event.get("map"), dict):
            shares = {column: event["map"].get(column) for column in COLUMNS}
            if all(share is None or isinstance(share, int | float) for share in shares.values()):
                return {"map": shares, "split": str(event.get("split"))}
    return {}


def _report(path: Path) -> dict[str, Any]:
    results = Results.load(path)
    maps = results.maps.get("merged")
    if maps is None:
        raise ValueError(f"{path} has no row merged")
    values = results.to_dict()
    test = [values["evaluated"].get(key) for key in ("dataset", "split", "images")]
    classes = [[row["name"], row["test"], row["group"]] for row in values["classes"]]
    judged = json.dumps([test, classes, values["protocol"]], sort_keys=True)
    digest = hashlib.sha256(judged.encode()).hexdigest()[:12]
    return {"map": {column: maps[column] for column in COLUMNS}, "split": "test", "test_set": digest}


def _last_change(folder: Path) -> float:
    times = []
    for name in (".", "config.yaml", "metrics.jsonl", "report/results.json"):
        try:
            times.append((folder / name).stat().st_mtime)
        except OSError:
            continue
    return max(times, default=0.0)


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _best(states: Sequence[RunState]) -> set[tuple[str, str, str]]:
    """(test set, column, figure as printed) of the best, where at least two runs share a test set."""
    found = set()
    for test_set in {run.test_set for run in states} - {None}:
        runs = [run for run in states if run.test_set == test_set]
        for column in COLUMNS:
            shares = [share for run in runs if (share := (run.map or {}).get(column)) is not None]
            if len(runs) > 1 and shares:
                found.add((str(test_set), column, _percent(max(shares))))
    return found


def _figure(run: RunState, column: str, best: set[tuple[str, str, str]]) -> str:
    text = "" if run.map is None else _percent(run.map[column])
    return text + ("*" if (run.test_set, column, text) in best else " ")


def _percent(share: float | None) -> str:
    return NOT_APPLICABLE if share is None else f"{100 * share:.2f}"


def _progress(run: RunState) -> str:
    step = "" if run.step is None else str(run.step)
    return f"{step or 0}/{run.total}" if run.total is not None else step


def _plain(text: str) -> str:
    """On one line, as any terminal can show it: names of files may hold what no encoding has."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))


def _right(cells: Sequence[str]) -> list[str]:
    width = max(map(len, cells))
    return [cell.rjust(width) for cell in cells]


def _cut(name: str, width: int) -> str:
    """At most `width` characters: what runs differ in is at both ends."""
    if len(name) <= width:
        return name
    left = (width - 3 + 1) // 2
    return f"{name[:left]}...{name[len(name) - (width - 3 - left) :]}"


def _reason(text: str) -> list[str]:
    indent = "    "
    return textwrap.wrap(
        _plain(text),
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        max_lines=3,
        placeholder=" ...",
        break_on_hyphens=False,
    )
