"""A classifier with a head on features, as folders: its encoder's files, and `head.json` with `head.safetensors`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_more.adapters import general_part, merge_tail, save_tail, tail_parameters
from clip_more.config import LOSSES_OF_ONE_LABEL
from clip_more.hub.export import draw, replaced, with_model, write_transformers
from clip_more.models.backbones import save_backbone
from clip_more.models.clip import Clip
from clip_more.models.head_files import save_head

if TYPE_CHECKING:
    from torch import nn

    from clip_more.config import TrainConfig
    from clip_more.data.profile import ClassProfile
    from clip_more.evaluation.results import Results
    from clip_more.models.classifier import Encoder, FeatureClassifier


def export_feature_run(
    folder: str | os.PathLike[str],
    classifier: FeatureClassifier,
    profile: ClassProfile,
    config: TrainConfig,
    results: Results | None = None,
    thresholds: Sequence[float] | None = None,
) -> Path:
    """Write `general/`, `tail/` and `merged/` below a run's folder; `merged/` alone where there is no tail.

    The classifier is left as it is.

    Returns:
        The path of `merged/`.

    Raises:
        ValueError: If one of the folders holds something else.
    """
    from clip_more.hub.card import feature_card, public_name

    folder, encoder = Path(folder), classifier.encoder
    content: dict[str, Any] = {
        "class_names": list(profile.names),
        "thresholds": None if thresholds is None else [float(value) for value in thresholds],
        "profile": profile.to_dict(),
        "trained_from": public_name(encoder.source),
        "geometry": encoder.geometry,
        "selection": results.protocol.selection if results is not None else "unknown",
        "softmax": config.loss in LOSSES_OF_ONE_LABEL,
    }
    model: nn.Module = encoder.model
    if tail_parameters(model):
        with replaced(folder / "general") as aside:
            _write(encoder, general_part(model), aside)
        with replaced(folder / "tail") as aside:
            save_tail(model, aside, base="../general")
        model = merge_tail(model)
    with tempfile.TemporaryDirectory() as scratch, replaced(folder / "merged") as aside:
        _write(encoder, model, aside)
        save_head(aside, classifier.head, content)
        figure = draw(results, Path(scratch) / "ap_by_frequency.png")
        for name, path in figure.items():
            (aside / name).write_bytes(path.read_bytes())
        card = feature_card(
            name=config.run_name,
            head=classifier.head.kind,
            content=content,
            results=results,
            config=config,
            figure=next(iter(figure), None),
        )
        (aside / "README.md").write_text(card, encoding="utf-8")
    return folder / "merged"


def _write(encoder: Encoder, model: nn.Module, folder: Path) -> None:
    """An encoder's files, with other weights than it has now."""
    if isinstance(encoder, Clip):
        write_transformers(with_model(encoder, model), folder, None)
        return
    held = encoder.model
    try:
        encoder.model = model
        save_backbone(encoder, folder)
    finally:
        encoder.model = held
