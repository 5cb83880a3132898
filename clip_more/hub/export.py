"""From a trained model to folders that anybody's transformers, open_clip and PEFT load."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from clip_more.config import LOSSES_OF_ONE_LABEL
from clip_more.files import filled_aside
from clip_more.models.clip import Clip
from clip_more.models.convert import hf_to_open_clip, open_clip_config
from clip_more.models.multilabel import FILE as MULTILABEL_FILE
from clip_more.models.multilabel import check_multilabel, make_multilabel
from clip_more.models.open_clip_files import CONFIG_FILE, WEIGHT_FILES
from clip_more.models.processor import open_clip_preprocess
from clip_more.models.prompts import class_prompts, load_templates

if TYPE_CHECKING:
    from clip_more.config import TrainConfig
    from clip_more.data.profile import ClassProfile
    from clip_more.evaluation.results import Results
    from clip_more.models.classifier import Classifier

FIGURE = "ap_by_frequency.png"
# A folder with one of these was written by an export and may be replaced by the next.
_OURS = ("config.json", "adapter_config.json")


def export_model(
    clip: Clip,
    folder: str | os.PathLike[str],
    *,
    multilabel: dict[str, Any] | None = None,
    card: str | None = None,
    files: Mapping[str, Path] | None = None,
) -> Path:
    """Write a Hub-ready folder: transformers' and open_clip's files side by side, complete or not at all.

    Args:
        clip: A plain CLIP, without a tail.
        folder: Replaced if it holds an earlier export.
        multilabel: Content of `multilabel.json`; its logit scale becomes that of the saved model.
        card: Text of the README.md.
        files: More files to copy in, by the name they get.

    Returns:
        `folder`.

    Raises:
        ValueError: If the model carries a tail, `multilabel` is inconsistent, or `folder` holds something else.
    """
    from clip_more.adapters import tail_parameters

    if tail_parameters(clip.model):
        raise ValueError("this model carries a tail; merge_tail(model) first, or use export_run")
    scale = None
    if multilabel is not None:
        check_multilabel(multilabel)
        scale = multilabel["logit_scale"]
    with replaced(folder) as aside:
        write_transformers(clip, aside, scale)
        _write_open_clip(clip, aside, scale)
        if multilabel is not None:
            _write_json(aside / MULTILABEL_FILE, multilabel)
        if card is not None:
            (aside / "README.md").write_text(card, encoding="utf-8")
        for name, path in (files or {}).items():
            shutil.copyfile(path, aside / name)
    return Path(folder)


def export_run(
    folder: str | os.PathLike[str],
    classifier: Classifier,
    profile: ClassProfile,
    config: TrainConfig,
    results: Results | None = None,
    thresholds: Sequence[float] | None = None,
) -> Path:
    """Write `general/`, `tail/` and `merged/` below a run's folder; `merged/` alone where there is no tail.

    The classifier is left as it is; at most one copy of its CLIP is alive at a time.

    Returns:
        The path of `merged/`.

    Raises:
        ValueError: If one of the folders holds something else.
    """
    from clip_more.adapters import general_part, merge_tail, save_tail, tail_parameters
    from clip_more.hub.card import model_card, public_name

    folder, clip, head = Path(folder), classifier.clip, classifier.head
    prompts = class_prompts(profile.names, load_templates(config.templates), config.class_prompts)
    multilabel = make_multilabel(
        profile.names,
        prompts,
        math.exp(float(head.log_scale.detach())),
        head.bias.detach().tolist(),
        profile=profile.to_dict(),
        thresholds=thresholds,
        trained_from=public_name(clip.source),
        geometry=clip.geometry,
        selection=results.protocol.selection if results is not None else "unknown",
        softmax=config.loss in LOSSES_OF_ONE_LABEL,
    )
    model: nn.Module = clip.model
    if tail_parameters(model):
        with replaced(folder / "general") as aside:
            write_transformers(with_model(clip, general_part(model)), aside, multilabel["logit_scale"])
        with replaced(folder / "tail") as aside:
            save_tail(model, aside, base="../general")
        model = merge_tail(model)
    with tempfile.TemporaryDirectory() as scratch:
        figure = draw(results, Path(scratch) / FIGURE)
        card = model_card(
            name=config.run_name,
            multilabel=multilabel,
            results=results,
            config=config,
            figure=FIGURE if figure else None,
            open_clip=_open_clip_problem(clip) is None,
        )
        return export_model(with_model(clip, model), folder / "merged", multilabel=multilabel, card=card, files=figure)


def write_transformers(clip: Clip, folder: Path, logit_scale: float | None) -> None:
    """A plain CLIP as transformers saves it, with another logit scale where one is given."""
    from transformers import CLIPProcessor

    clip.model.save_pretrained(folder, state_dict=_plain_state(clip.model.state_dict(), logit_scale))
    CLIPProcessor(image_processor=clip.image_processor, tokenizer=clip.tokenizer).save_pretrained(folder)
    clip.image_processor.save_pretrained(folder)  # the processor writes no preprocessor_config.json, which many read


def _write_open_clip(clip: Clip, folder: Path, logit_scale: float | None) -> None:
    from safetensors.torch import save_file

    problem = _open_clip_problem(clip)
    if problem is not None:
        warnings.warn(f"{folder.name} gets no open_clip files: {problem}", stacklevel=3)
        return
    state, cfg = hf_to_open_clip(clip.model)
    tensors = {key: tensor.contiguous() for key, tensor in _plain_state(state, logit_scale).items()}
    save_file(tensors, folder / WEIGHT_FILES[0], metadata={"format": "pt"})
    _write_json(folder / CONFIG_FILE, {"model_cfg": cfg, "preprocess_cfg": open_clip_preprocess(clip.image_processor)})


def _open_clip_problem(clip: Clip) -> str | None:
    """Why open_clip could not run this CLIP, if so: no reason to withhold the rest of the export."""
    try:
        open_clip_config(clip.model.config)
        open_clip_preprocess(clip.image_processor)
    except ValueError as error:
        return str(error)
    return None


def _plain_state(state: dict[str, Tensor], logit_scale: float | None) -> dict[str, Tensor]:
    """`state` with the logit scale as the 0-d logarithm that both libraries expect (FSDP2 wants one dimension)."""
    own = state["logit_scale"].detach()
    value = own.reshape(()) if logit_scale is None else torch.tensor(math.log(logit_scale), dtype=own.dtype)
    return {**state, "logit_scale": value}


def with_model(clip: Clip, model: nn.Module) -> Clip:
    """The same tokenizer and preprocessing around another CLIPModel."""
    return Clip(model, clip.tokenizer, clip.image_processor, clip.source, clip.geometry)  # type: ignore[arg-type]


def draw(results: Results | None, path: Path) -> dict[str, Path]:
    """The figure of a card, by file name; empty where there is nothing to compare with, or no matplotlib."""
    if results is None or not {"zero-shot", "merged"} <= results.ap.keys():
        return {}
    from clip_more.evaluation.plots import plot_ap_by_frequency

    try:
        plot_ap_by_frequency(results.profile, results.ap["zero-shot"], results.ap["merged"], path)
    except ImportError as error:
        warnings.warn(f"the card gets no figure: {error}", stacklevel=3)
        return {}
    return {path.name: path}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


@contextmanager
def replaced(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """`filled_aside`, for a folder that is free or holds an earlier export."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; an export needs a folder")
    if folder.is_dir() and any(folder.iterdir()) and not any((folder / name).is_file() for name in _OURS):
        raise ValueError(f"{folder} is not empty and holds no earlier export; choose another folder or empty it")
    with filled_aside(folder) as aside:
        yield aside
