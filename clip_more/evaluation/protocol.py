"""The protocol: how figures were taken, declared beside every result."""

from __future__ import annotations

from dataclasses import dataclass, fields

from clip_more.config import EvaluationConfig

_KEYS = {field.name: field.metadata["choices"] for field in fields(EvaluationConfig)}
CHOICES = {name: _KEYS[name] for name in ("score", "ap", "unlabelled", "geometry", "views")} | {
    "difficult": (None, *_KEYS["test_difficult"]),
    "selection": ("none", "held_out", "train_part", "legacy_test", "unknown"),
}


@dataclass(frozen=True)
class Protocol:
    """How figures were taken; written beside every result. The groups' bounds stand in the class profile.

    Attributes:
        score: What ranks the photos of a class: `logit` (fp32), `sigmoid` (saturates, and so makes ties) or `softmax`
            (over classes; re-orders photos).
        ap: `step` (scikit-learn), `voc07_11point` or `voc10_interpolated`.
        difficult: VOC objects marked difficult count as `positive`, `negative` or `ignore`; None elsewhere.
        unlabelled: Test photos without a positive: `keep` or `drop`.
        geometry: How a photo becomes a square: `crop`, `squash` or `pad`.
        interpolation: Of the resizing.
        views: Views whose logits are averaged: `one`, `flip`, `five_crop`, `ten_crop`.
        selection: What the checkpoint was chosen on: `none` (the last step, or its running average), `held_out`,
            `train_part` (a second stage chosen on photos that its encoder was trained on), `legacy_test` (chosen on the
            very photos it is judged on), or `unknown`: the checkpoint does not say.
    """

    score: str = "logit"
    ap: str = "step"
    difficult: str | None = None
    unlabelled: str = "keep"
    geometry: str = "crop"
    interpolation: str = "bicubic"
    views: str = "one"
    selection: str = "none"

    def __post_init__(self) -> None:
        """Raises ValueError where a value is none of those above."""
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                listed = ", ".join("none" if choice is None else choice for choice in choices)
                raise ValueError(f"protocol: {name} is {value!r}, which this version does not know; it knows {listed}")
        if not isinstance(self.interpolation, str):
            raise ValueError(f"protocol: interpolation is {self.interpolation!r}; it must be a name, such as bicubic")

    def __str__(self) -> str:
        """In one line."""
        parts = [f"{self.score} scores", f"{self.ap} AP", self.geometry, self.interpolation, f"views {self.views}"]
        parts += [] if self.difficult is None else [f"difficult {self.difficult}"]
        return ", ".join([*parts, f"unlabelled {self.unlabelled}", f"selection {self.selection}"])
