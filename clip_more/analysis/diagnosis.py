"""The failure signs of a MORE run in words: what was seen, on which figure, and which key to change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clip_more.analysis.course import Course

# Where a figure counts as (nearly) nothing, or as too much. Rules of thumb, said beside every sentence they decide.
MARGIN = 0.5  # points of mAP or accuracy, where there is no interval
NO_DISCREPANCY = 0.02  # root mean square of Delta over the standard deviation of the logits
NO_SHARE = 0.002  # ||B A|| over ||W||, the largest over groups of layers
WEAK, STRONG = 0.01, 0.5  # alpha x discrepancy over the base loss, at its highest
EARLY = 0.4  # share of the steps

UNTOUCHED = "zero-shot"


@dataclass(frozen=True)
class Change:
    """A figure of the merged model less that of another, in 0..1, by group.

    Attributes:
        against: What the other is called.
        values: Group to the difference; groups without one are left out.
        intervals: Group to 95 % [low, high] over test photos; may lack groups.
    """

    against: str
    values: Mapping[str, float]
    intervals: Mapping[str, Sequence[float]]

    def falls(self, group: str) -> bool:
        """Whether the group is lower, beyond its interval or the margin."""
        if group not in self.values:
            return False
        if group in self.intervals:
            return self.intervals[group][1] < 0
        return 100 * self.values[group] < -MARGIN

    def rises(self, group: str) -> bool:
        """Whether the group is higher, beyond its interval or the margin."""
        if group not in self.values:
            return False
        if group in self.intervals:
            return self.intervals[group][0] > 0
        return 100 * self.values[group] > MARGIN

    def words(self, group: str) -> str:
        """`-1.20 points against general (95 %: -2.00 to -0.40)`."""
        text = f"{100 * self.values[group]:+.2f} points against {self.against}"
        if group in self.intervals:
            low, high = (100 * bound for bound in self.intervals[group])
            text += f" (95 %: {low:+.2f} to {high:+.2f})"
        return text


@dataclass(frozen=True)
class Finding:
    """One sentence of the diagnosis.

    Attributes:
        sign: `head_falls`, `no_tail_gain`, `instability`, `nothing_wrong` or `cannot_tell`.
        text: What was seen, with its figures.
        keys: Keys of the recipe to change.
    """

    sign: str
    text: str
    keys: tuple[str, ...] = ()


def diagnose(
    config: Mapping[str, Any],
    changes: Sequence[Change],
    course: Course | None,
    relative_discrepancy: float | None = None,
) -> list[Finding]:
    """The failure signs of a run with a tail.

    Args:
        config: The recipe's keys.
        changes: Of the merged model: against the general part, the untouched model, perhaps a baseline run.
        course: From `metrics.jsonl`.
        relative_discrepancy: `Discrepancy.relative`.

    Returns:
        At least one finding; `nothing_wrong` alone where no sign was seen.
    """
    if config.get("tuning") != "more":
        found = _instability(course)
        told = Finding("cannot_tell", f"This run has tuning: {config.get('tuning')}, so it has no tail to diagnose.")
        return [told, *found]
    found = [*_head_falls(config, _comparable(config, changes), course)]
    found += _no_tail_gain(config, changes, course, relative_discrepancy)
    found += _instability(course)
    return found or [_nothing_wrong(_comparable(config, changes), course)]


def moves_general_part(config: Mapping[str, Any]) -> bool:
    """Whether L_MORE moves W_g as well, so that W_g is the method's own and nothing to compare it with.

    With the gradient in both passes what it asks of W_g in the one is taken back in the other, but for a rest.
    """
    weighed = config.get("amplitude_ratio") is not None or config.get("amplitude", 1.0) != 0
    return weighed and config.get("discrepancy_gradient") in ("stop_general", "stop_full")


def _comparable(config: Mapping[str, Any], changes: Sequence[Change]) -> list[Change]:
    """Those against models that L_MORE had no part in."""
    return [change for change in changes if not (moves_general_part(config) and change.against == "general")]


def _head_falls(config: Mapping[str, Any], changes: Sequence[Change], course: Course | None) -> list[Finding]:
    fallen = [change for change in changes if change.falls("head")]
    if not fallen:
        return []
    seen = "Head classes fall: " + "; ".join(change.words("head") for change in fallen) + "."
    reasons, keys = _inverted(config)
    if course and course.peak is not None and course.peak < EARLY:
        schedule = config.get("alpha_schedule")
        reasons.append(
            f"Alpha is highest after {100 * course.peak:.0f} % of the steps (alpha_schedule: {schedule}), before the "
            "model has fitted; the sinusoid peaks half-way."
        )
        keys.append("alpha_schedule")
    if course and course.strength is not None and course.strength > STRONG:
        reasons.append(
            f"L_MORE is strong: up to {100 * course.strength:.0f} % of the base loss, after "
            f"{100 * (course.strength_at or 0):.0f} % of the steps; lower the amplitude."
        )
        keys.append("amplitude")
    if not reasons:
        reasons.append(
            "Neither weighting nor alpha explain it (the exponent is not negative, L_MORE is below half the base loss "
            "and does not peak early): compare with the same recipe under amplitude: 0, which has the tail without "
            "L_MORE."
        )
        keys.append("amplitude")
    return [Finding("head_falls", " ".join([seen, *reasons]), tuple(keys))]


def _inverted(config: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The reason and key of an inverted weighting, where it is one."""
    exponent = float(config.get("discrepancy_prior_exponent", 1.0))
    if exponent >= 0:
        return [], []
    reason = (
        f"The weighting is inverted: discrepancy_prior_exponent is {exponent:g}, so L_MORE keeps B A from rare classes "
        "and leaves it to common ones; 1 is the prior."
    )
    return [reason], ["discrepancy_prior_exponent"]


def _no_tail_gain(
    config: Mapping[str, Any], changes: Sequence[Change], course: Course | None, relative: float | None
) -> list[Finding]:
    # Any fine-tuning beats the untouched model; what the tail is for shows against models that were trained, too.
    told = [change for change in changes if "tail" in change.values and change.against != UNTOUCHED]
    if not told:
        return [Finding("cannot_tell", "No tail class has test photos, so a gain on the tail cannot be seen.")]
    told = _comparable(config, told)
    if not told:
        text = (
            "Whether the tail gained cannot be told from this run alone: L_MORE moves W_g, too (discrepancy_gradient: "
            f"{config['discrepancy_gradient']}). Name a run of the same recipe under tuning: full with --baseline."
        )
        return [Finding("cannot_tell", text)]
    lacking = [change for change in told if not change.rises("tail")]
    if not lacking:
        return []
    seen = "No gain on tail classes: " + "; ".join(change.words("tail") for change in lacking) + "."
    reasons, keys = _inverted(config)
    if [change.against for change in told] == ["general"]:
        seen += " (The general part was trained beside the tail; a run without one, as a baseline, says more.)"
    if moves_general_part(config):
        why = [] if reasons else ["Too high an amplitude takes from the tail, too low a one does nothing for it."]
        why_keys = [] if reasons else ["amplitude" if config.get("amplitude_ratio") is None else "amplitude_ratio"]
    else:
        why, why_keys = _what_is_small(course, relative)
    if not reasons + why:
        why.append(
            "Rank and strength are not the plain cause (discrepancy, tail share and L_MORE are above what counts as "
            "nothing): the tail is used, but not for these classes."
        )
        why_keys.append("discrepancy_weighting")
    return [Finding("no_tail_gain", " ".join([seen, *reasons, *why]), tuple(dict.fromkeys([*keys, *why_keys])))]


def _what_is_small(course: Course | None, relative: float | None) -> tuple[list[str], list[str]]:
    """Reasons and keys where B A or L_MORE came to nothing."""
    reasons: list[str] = []
    keys: list[str] = []
    if relative is not None and relative < NO_DISCREPANCY:
        reasons.append(
            f"B A hardly moves the logits: by {100 * relative:.2g} % of what they vary by, which is below "
            f"{100 * NO_DISCREPANCY:g} %."
        )
        keys += ["rho", "lr_tail"]
    largest = max(course.tail_share.values(), default=None) if course else None
    if largest is not None and largest < NO_SHARE:
        reasons.append(
            f"B A has stayed small: at most {100 * largest:.2g} % of the weights of a group of layers, which is below "
            f"{100 * NO_SHARE:g} %."
        )
        keys += ["rho", "lr_tail"]
    if course and course.strength is not None and course.strength < WEAK:
        reasons.append(
            f"L_MORE was weak: at most {100 * course.strength:.2g} % of the base loss, which is below {100 * WEAK:g} "
            "%: it does not decide what general part and tail learn."
        )
        keys.append("amplitude")
    elif course and course.strength is not None and course.strength > STRONG and keys:
        reasons.append(
            f"L_MORE reached {100 * course.strength:.0f} % of the base loss: it may have shrunk B A itself; try a "
            "lower amplitude before a higher rank."
        )
        keys.insert(0, "amplitude")
    return reasons, keys


def _instability(course: Course | None) -> list[Finding]:
    if course is None:
        return [Finding("cannot_tell", "metrics.jsonl has no logged step, so the course of training cannot be seen.")]
    if not course.spikes and not course.skipped:
        return []
    parts = []
    if course.skipped:
        parts.append(f"{course.skipped} steps were left out because loss or gradient were not finite")
    if course.spikes:
        worst = max(course.spikes, key=lambda spike: spike.times)
        name = "loss" if worst.what == "loss" else "gradient norm"
        number = f"{len(course.spikes)} spikes" if len(course.spikes) > 1 else "1 spike"
        parts.append(
            f"{number} of loss or gradient, the largest at step {worst.step} ({name} {worst.times:.1f} times its "
            "neighbours)"
        )
    seen = "Training was not steady: " + "; ".join(parts) + "."
    near = [spike for spike in course.spikes if spike.at_peak]
    if near and course.peak is not None and course.peak < EARLY:
        why = (
            f"Around the peak of alpha: {len(near)} of them. It comes after {100 * course.peak:.0f} % of the steps: "
            "too early."
        )
        return [Finding("instability", f"{seen} {why}", ("alpha_schedule", "amplitude"))]
    if near:
        why = f"Around the peak of alpha: {len(near)} of them. Lower it, or clip harder."
        return [Finding("instability", f"{seen} {why}", ("amplitude", "clip_norm"))]
    why = "They are not tied to alpha's peak: look at the learning rate."
    return [Finding("instability", f"{seen} {why}", ("lr", "warmup", "clip_norm"))]


def _nothing_wrong(changes: Sequence[Change], course: Course | None) -> Finding:
    parts = [
        f"{group} {change.words(group)}" for group in ("head", "tail") for change in changes if group in change.values
    ]
    steady = f"; no spike of loss or gradient in {course.steps} steps" if course else ""
    return Finding("nothing_wrong", f"Nothing wrong was seen: {'; '.join(parts)}{steady}.")
