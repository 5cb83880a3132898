"""JSON lines of finished runs: made from a run's folder, kept in one file a sweep, and found again."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clip_more.config import LOSSES_OF_ONE_LABEL, TrainConfig
from clip_more.data.profile import ClassProfile
from clip_more.evaluation.average_precision import average_precision, to_scores
from clip_more.evaluation.bootstrap import resampled_ap
from clip_more.evaluation.groups import members
from clip_more.evaluation.run_events import read_events
from clip_more.files import written_aside

if TYPE_CHECKING:
    from collections.abc import Iterator

Line = dict[str, Any]
COLUMNS = ("total", "head", "medium", "tail", "medium+tail")
DRAWS = 100
# Points of a curve that a line keeps, at most.
POINTS = 30
_LARGE = ("merged", "general", "tail", "checkpoints", "export")


@dataclass(frozen=True)
class Recorder:
    """Makes the lines of one run when it has ended, and then removes what is large.

    Attributes:
        head: What the lines say of their run: sweep, bed, judged_on, recipe, arm, seed, values, settings, commit.
        config: Of the run.
        derived: Names of further lines to alpha: judged with that share of the run's weights, the rest the untouched
            CLIP's (WiSE-FT).
        profile: File with the class profile that groups come from; the run's own train photos without it.
    """

    head: Line
    config: TrainConfig
    derived: dict[str, float] = field(default_factory=dict)
    profile: Path | None = None

    def __call__(self, folder: Path) -> list[Line]:
        """The run's lines; its own comes first."""
        written = folder / "lines.json"
        if not written.is_file():
            lines = list(self._lines(folder))
            with written_aside(written) as aside:
                aside.write_text(json.dumps(lines), encoding="utf-8")
        for name in _LARGE:
            shutil.rmtree(folder / name, ignore_errors=True)
        return json.loads(written.read_text(encoding="utf-8"))

    def _lines(self, folder: Path) -> Iterator[Line]:
        import torch

        from clip_more.evaluation.results import Results
        from clip_more.evaluation.scores import load_scores

        results = Results.load(folder / "report" / "results.json")
        scores = load_scores(folder / "report" / "scores.safetensors")
        profile = ClassProfile.load(self.profile) if self.profile else results.profile
        photos = zlib.crc32(np.ascontiguousarray(scores.targets).tobytes())  # runs on the same ones draw them alike

        def judged(logits: np.ndarray) -> tuple[np.ndarray, list[list[int | None]]]:
            labels, form = (scores.targets, scores.known), self.config.ap
            ranked = to_scores(logits, self.config.score)
            ap = average_precision(labels[0], ranked, labels[1], names=profile.names, form=form)
            drawn = resampled_ap(labels[0], ranked, labels[1], draws=DRAWS, seed=photos, form=form)
            return ap, resampled_columns(drawn, profile)

        ap, resampled = judged(scores.rows["merged"])
        general = judged(scores.rows["general"])[0] if "general" in scores.rows else None
        zero_shot = judged(scores.rows["zero-shot"])[0] if "zero-shot" in scores.rows else None
        events = read_events(folder / "metrics.jsonl")
        top1 = results.metrics.get("merged", {}).get("top1") if self.config.task == "single_label" else None
        about: Line = {
            "steps": max((event["step"] for event in events if event["event"] == "train"), default=0),
            "zero_shot": None if zero_shot is None else columns_of(zero_shot, profile),
            "counts": list(profile.counts),
            "groups": list(profile.groups),
            "test_photos": f"{photos:08x}",
            "test_positives": [int(number) for number in results.test_positives],
            "classes": list(profile.names),
            "seconds": training_seconds(events, "time" if torch.cuda.is_available() else "cpu"),
        }
        own: Line = {
            "map": columns_of(ap, profile),
            "general": None if general is None else columns_of(general, profile),
            **({"top1": top1} if top1 is not None else {}),
            "ap": _rounded(ap),
            "ap_general": None if general is None else _rounded(general),
            "delta": None if general is None else _moved(scores.rows["merged"], scores.rows["general"]),
            "risk": self._train_risk(folder),
            "resampled": resampled,
        }
        yield self.head | own | about | {"course": course(events)}
        for name, logits in self._derived_logits(folder):
            ap, resampled = judged(logits)
            own = {"map": columns_of(ap, profile), "general": None, "ap": _rounded(ap), "ap_general": None}
            mixed = {"arm": name, "of": self.head["arm"], "alpha": self.derived[name]}
            yield self.head | mixed | own | {"resampled": resampled} | about

    def _train_risk(self, folder: Path) -> list[float | None] | None:
        """(C,) mean binary cross-entropy of the merged model on its train photos; None beside a softmax loss."""
        if self.config.loss in LOSSES_OF_ONE_LABEL:
            return None
        from clip_more.data.load import load_data
        from clip_more.evaluation.judge import test_logits
        from clip_more.models.classifier import load_classifier
        from clip_more.training.processes import make_accelerator

        data = load_data(self.config)
        merged, _ = load_classifier(folder / "merged", self.config.geometry)
        data = replace(data, test=data.train)
        found = test_logits(merged, self.config, data, make_accelerator(self.config), "train photos")
        logits = found.scores.astype(np.float64)
        risk = np.where(found.known, np.logaddexp(0.0, logits) - found.targets * logits, np.nan)
        return _rounded(np.nanmean(risk, axis=0))

    def _derived_logits(self, folder: Path) -> Iterator[tuple[str, np.ndarray]]:
        """Test logits of the run's weights mixed with those of the untouched CLIP."""
        if not self.derived:
            return
        import copy

        from clip_more.data.load import load_data
        from clip_more.evaluation.judge import test_logits
        from clip_more.evaluation.wise_ft import interpolate_weights
        from clip_more.models.classifier import Classifier, load_classifier
        from clip_more.models.clip import load_clip
        from clip_more.training.processes import make_accelerator

        config, data, accelerator = self.config, load_data(self.config), make_accelerator(self.config)
        merged, _ = load_classifier(folder / "merged", config.geometry)
        if not isinstance(merged, Classifier):
            raise ValueError(f"arm {self.head['arm']!r} has no text tower, so its weights are not mixed")
        between = copy.deepcopy(merged)
        start = load_clip(config.model, image_size=config.image_size, geometry=config.geometry, seed=config.seed)
        for name, alpha in self.derived.items():
            interpolate_weights(start, merged.clip, alpha, between.clip)
            yield name, test_logits(between, config, data, accelerator, name).scores


def columns_of(ap: np.ndarray, profile: ClassProfile) -> dict[str, float | None]:
    """Mean AP of every column, in 0..1; None where no class has one."""
    means = _means(ap[None], profile)[0]
    return dict(zip(COLUMNS, _rounded(means), strict=True))


def resampled_columns(ap: np.ndarray, profile: ClassProfile) -> list[list[int | None]]:
    """Mean AP of every column in each resample, times 10,000, of AP (draws, C)."""
    means = _means(ap, profile)
    return [[None if np.isnan(mean) else round(1e4 * float(mean)) for mean in row] for row in means]


def _means(ap: np.ndarray, profile: ClassProfile) -> np.ndarray:
    """(draws, C) -> (draws, columns): means over the classes that have an AP, NaN where none has."""
    groups = members(profile)
    groups["medium+tail"] = np.sort(np.concatenate([groups["medium"], groups["tail"]]))
    means = np.full((len(ap), len(COLUMNS)), np.nan)
    for place, column in enumerate(COLUMNS):
        part = ap[:, groups[column]]
        there = ~np.isnan(part)
        number = there.sum(axis=1)
        np.divide(np.where(there, part, 0.0).sum(axis=1), number, out=means[:, place], where=number > 0)
    return means


def training_seconds(events: Iterable[Mapping[str, Any]], clock: str) -> float:
    """Seconds in the loop until its last logged step, over all starts of the run: no reading, judging, exporting.

    Args:
        events: Of metrics.jsonl.
        clock: "cpu", which other work on the machine hardly changes, or "time".
    """
    seconds, start, last = 0.0, None, None
    for event in events:
        if event["event"] == "start":
            start, last = event[clock], event[clock]
        elif event["event"] in ("train", "stopped") and start is not None and last is not None:
            seconds, last = seconds + event[clock] - last, event[clock]
    return round(seconds, 2)


def course(events: Iterable[Mapping[str, Any]]) -> dict[str, list[float | None]]:
    """Small curves over the logged steps: those of the losses, alpha and the mean share of the tail."""
    last = {event["step"]: event for event in events if event["event"] == "train"}  # of a resumed run the later one
    rows = [last[step] for step in sorted(last)]
    if len(rows) > POINTS:
        rows = [rows[place] for place in np.linspace(0, len(rows) - 1, POINTS).round().astype(int)]
    curves: dict[str, list[float | None]] = {"step": [row["step"] for row in rows]}
    for name in ("base", "discrepancy", "alpha"):
        curves[name] = [_short(row.get(name)) for row in rows]
    shares = [list((row.get("tail_share") or {}).values()) for row in rows]
    curves["tail_share"] = [_short(sum(share) / len(share)) if share else None for share in shares]
    return {name: values for name, values in curves.items() if any(value is not None for value in values)}


def _moved(merged: np.ndarray, general: np.ndarray) -> list[float | None]:
    """(C,) root mean square over photos of what the tail adds to a class's logit, over the logits' deviation."""
    merged = merged.astype(np.float64)
    return _rounded(np.sqrt(np.square(merged - general).mean(axis=0)) / merged.std())


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _rounded(ap: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value), 6) for value in ap]


def read_lines(path: Path) -> list[Line]:
    """All whole lines of a file, which may be growing; the last one of an arm and a seed counts."""
    found: dict[tuple[str, int], Line] = {}
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
            found[line["arm"], line["seed"]] = line
        except (ValueError, TypeError, KeyError):
            continue  # half a line: a kill left it, or it is being written
    return list(found.values())


def same_run(evidence: Path, head: Line) -> Line | None:
    """The line of the same run in the file of any sweep: the same settings and seed, and so the same figures."""
    for path in sorted(evidence.glob("*.jsonl")):
        for line in read_lines(path):
            if line["seed"] == head["seed"] and "of" not in line and not differing(line, head):
                return line
    return None


def drop_lines(path: Path, dropped: Iterable[Line]) -> None:
    """Write the file without these lines of `read_lines`."""
    keys = {(line["arm"], line["seed"]) for line in dropped}
    kept = [line for line in read_lines(path) if (line["arm"], line["seed"]) not in keys]
    with written_aside(path) as aside:
        aside.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept), encoding="utf-8")


def differing(line: Line, head: Line) -> list[str]:
    """What a line and a run to be disagree in: `key: there, now`."""
    parts = [f"{key}: {line.get(key)!r} there, {head[key]!r} now" for key in ("bed", "judged_on", "recipe")
             if line.get(key) != head[key]]  # fmt: skip
    if line.get("settings") == head["settings"]:
        return parts  # a key that is written out, or left to a default that says the same, is no difference
    before, now = line.get("values", {}), head["values"]
    found = [
        f"{key}: {before.get(key, 'as the recipe')!r} there, {now.get(key, 'as the recipe')!r} now"
        for key in dict.fromkeys([*before, *now])
        if (key in before) != (key in now) or before.get(key) != now.get(key)
    ]
    return parts + (found or ["settings: the recipe, or defaults of keys, have changed since"])
