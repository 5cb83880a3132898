"""One choice for all methods: fit each candidate on train, take the one that is best on validation photos."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from clip_more.models.feature_heads import FeatureHead
from clip_more.stage2.cached import Cached
from clip_more.stage2.measure import logits_of, measure, measure_for


@dataclass(frozen=True)
class Stage:
    """What every method starts from.

    Attributes:
        head: Of stage 1.
        train: Photos that a method learns from.
        val: Photos that it chooses on; None leaves nothing to choose.
        single_label: Every photo has exactly one class.
        sigmoids: Stage 1 was trained on one sigmoid a class, as with several labels, so that most logits are negative.
        groups: Group name to class indices, for the figures beside the one that chooses.
        seed: Of fresh weights and of the order of photos.
        refit: Make the chosen candidate again from train and val together.
        device: Of the fits.
    """

    head: FeatureHead
    train: Cached
    val: Cached | None
    single_label: bool
    groups: Mapping[str, Sequence[int]] = field(default_factory=dict)
    seed: int = 0
    refit: bool = False
    device: str = "cpu"
    sigmoids: bool = False


@dataclass(frozen=True)
class Fitted:
    """A head, and what happened while it was made (plain JSON values)."""

    head: FeatureHead
    log: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Selection:
    """How a method's values were chosen.

    Attributes:
        method: Its name.
        measure: What chose, from `measure.py`; None where there was one candidate.
        photos: How many it was taken on.
        stage_one: The measure of the head of stage 1 on them, over all classes and by group.
        candidates: `values` and `scores` of each, the smallest correction first; scores None where a fit came to
            nothing finite.
        chosen: Values of the best; of equals the smallest correction.
        log: Of the chosen fit.
        refitted: Whether it was made again from train and val together.
        keeps_ap: Whether the order of the photos of every class is that of stage 1, and so every class's AP.
    """

    method: str
    measure: str | None
    photos: int
    stage_one: dict[str, float | None] | None
    candidates: list[dict[str, Any]]
    chosen: dict[str, Any]
    log: dict[str, Any]
    refitted: bool
    keeps_ap: bool


Fit = Callable[[Cached, dict[str, Any], str], Fitted]


def choose(
    method: str, stage: Stage, candidates: Sequence[dict[str, Any]], fit: Fit, *, monotone: bool = False
) -> tuple[FeatureHead, Selection]:
    """Fit and score every candidate; return the best, which of equals is the first.

    Args:
        method: For the record.
        stage: Photos and the head of stage 1.
        candidates: Values by name, the smallest correction first.
        fit: A head from photos, the values of a candidate, and a label for a progress bar.
        monotone: Whether no candidate changes the order of the photos of a class.

    Raises:
        ValueError: There are several candidates and no validation photos, or no fit came to anything finite.
    """
    if len(candidates) > 1 and stage.val is None:
        names = " and ".join(f"--{name}" for name in candidates[0])
        raise ValueError(f"{method} has {names} to choose and no validation photos to choose on; give {names}")
    name = measure_for(stage.single_label, monotone) if stage.val is not None else None
    scored: list[dict[str, Any]] = []
    best: tuple[Fitted, dict[str, Any]] | None = None
    highest = -1.0
    for number, values in enumerate(candidates, 1):
        label = f"{method} {_shown(values)}" + (f" ({number} of {len(candidates)})" if len(candidates) > 1 else "")
        fitted = fit(stage.train, values, label)
        scores = None
        if name is not None and stage.val is not None:
            scores = measure(name, logits_of(fitted.head, stage.val.features, stage.device), stage.val, stage.groups)
        scored.append({"values": values, "scores": scores})
        total = None if scores is None else scores["total"]
        if best is None and name is None:
            best = fitted, values
        elif total is not None and total > highest:
            best, highest = (fitted, values), total
    if best is None:
        raise ValueError(f"{method}: no candidate gave finite logits and a figure on validation; give a lower --lr")
    fitted, chosen = best
    refitted = stage.refit and stage.val is not None
    if refitted and stage.val is not None:
        fitted = fit(stage.train.joined(stage.val), chosen, f"{method} {_shown(chosen)}, all photos")
    before = None
    if name is not None and stage.val is not None:
        before = measure(name, logits_of(stage.head, stage.val.features, stage.device), stage.val, stage.groups)
    stage.head.to("cpu")
    keeps_ap = monotone and not fitted.log.get("negative_factors")
    photos = 0 if stage.val is None else len(stage.val)
    return fitted.head.to("cpu").eval(), Selection(
        method, name, photos, before, scored, chosen, fitted.log, refitted, keeps_ap
    )


def _shown(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:g}" if isinstance(value, float) else f"{value}" for name, value in values.items())
