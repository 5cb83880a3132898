"""The whole zero-shot comparison of a run or of any CLIPs: table, WiSE-FT curve, unseen classes, files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_more.config import ConfigError, TrainConfig
from clip_more.data.form import class_names
from clip_more.data.load import LongTailData
from clip_more.data.prepared import prepared_settings
from clip_more.data.profile import ClassProfile
from clip_more.evaluation.judge import protocol_of
from clip_more.evaluation.open_vocabulary import UnseenReport, Vocabulary
from clip_more.evaluation.predict import preprocessing
from clip_more.evaluation.results import identify
from clip_more.evaluation.wise_ft import (
    check_alphas,
    check_same_preprocessing,
    check_same_weights,
    wise_ft_curve,
    wise_ft_table,
)
from clip_more.evaluation.zero_shot import ZeroShotModel, check_scores, compare_zero_shot, load_zero_shot_model
from clip_more.evaluation.zero_shot_comparison import ZeroShotComparison, map_with_unseen
from clip_more.models.classifier import has_feature_head
from clip_more.models.clip import Clip
from clip_more.models.multilabel import FILE, read_multilabel
from clip_more.models.prompts import load_prompt_sets

if TYPE_CHECKING:
    import datasets
    from accelerate import Accelerator

PHOTOS = {"test": "test", "held_out": "held out of train"}


def compared_models(sources: Sequence[str], config: TrainConfig) -> dict[str, str]:
    """What the models of a comparison are called, and where they are loaded from.

    Args:
        sources: Folders, Hub ids or other names of CLIPs. Where the first is a finished run, its untouched CLIP
            (`zero-shot`), `general` and `merged` take its place; another run stands for its merged model.
        config: Names the untouched CLIP.

    Raises:
        ValueError: There is no source, one comes twice, or a run is not finished.
    """
    models: dict[str, str] = {}
    for place, source in enumerate(sources):
        folder = Path(source)
        run = (folder / "config.yaml").is_file()
        if run and has_feature_head(folder / "merged"):
            raise ValueError(
                f"{source} has a head on features and no prompts, and this compares models by prompts; "
                "`clip-more zero-shot RUN` without options sets its rows side by side"
            )
        if run and not (folder / "merged" / FILE).is_file():
            raise ValueError(f"{source} is not finished: it has no merged checkpoint yet; train it to its end first")
        if run and place == 0:
            models["zero-shot"] = config.model
            models |= {part: str(folder / part) for part in ("general", "merged") if (folder / part).is_dir()}
            continue
        label = folder.resolve().name if folder.is_dir() else source
        if label in models:
            label = source
        if label in models:
            raise ValueError(f"{source} is named twice among the models to compare")
        models[label] = str(folder / "merged") if run else source
    if not models:
        raise ValueError("there is no model to compare; name one at least")
    return models


def zero_shot_report(
    sources: Sequence[str],
    config: TrainConfig,
    data: LongTailData,
    accelerator: Accelerator,
    *,
    prompt_sets: Sequence[str | Sequence[str]],
    scores: Sequence[str],
    alphas: Sequence[float] = (),
    unseen: LongTailData | None = None,
    on: str = "test",
    out: Path | None = None,
    file: Path | None = None,
) -> str:
    """The whole comparison, as text to print; with `out`, also `zero_shot_comparison.json` and figures.

    WiSE-FT and the unseen classes use the first prompt set, and WiSE-FT the first score.

    Args:
        sources: See :func:`compared_models`.
        config: The recipe: photos, protocol, image size, spellings.
        data: Its data.
        accelerator: Splits the photos over its processes; the first one writes.
        prompt_sets: See :func:`~clip_more.models.prompts.load_prompt_sets`.
        scores: Some of `logit`, `sigmoid` and `softmax`.
        alphas: Points of the WiSE-FT curve between the untouched and the merged model, or between the only two
            models; no curve without them.
        unseen: The same data read with seen and unseen classes; the classes that `data` lacks are the unseen ones,
            and its photos are those judged.
        on: The photos judged: `test`, or those `held_out` of train, where alpha may be chosen.
        out: Folder to write to.
        file: What `zero_shot_comparison.json` holds is written here too.

    Raises:
        ConfigError: Nothing was held out.
        FileNotFoundError: A model is absent.
        ValueError: Something named above is at fault, or a model was trained on an unseen class.
    """
    sets = load_prompt_sets(prompt_sets)
    check_scores(scores)
    paths = compared_models(sources, config)
    ends = _wise_ft_ends(list(paths)) if len(alphas) else None
    photos = _photos(on, config, data, unseen)
    names = class_names(photos)
    vocabulary = _vocabulary(names, data.profile, paths) if unseen is not None else None
    models = {label: load_zero_shot_model(source, config) for label, source in paths.items()}
    if ends is not None:
        alphas = check_alphas(alphas)
        check_same_preprocessing(models[ends[0]].clip, models[ends[1]].clip)
        check_same_weights(models[ends[0]].clip, models[ends[1]].clip)
    first = next(iter(sets))
    report = UnseenReport(vocabulary, tuple(names), first) if vocabulary is not None else None
    shared: dict[str, Any] = {
        "batch_size": config.batch_size,
        "workers": config.workers,
        "english": config.class_prompts,
        "views": config.views,
        "form": config.ap,
    }
    comparison = compare_zero_shot(
        models, photos, data.profile, accelerator, prompt_sets=prompt_sets, scores=scores, unseen=report, **shared
    )
    start = next(iter(models.values())).clip
    comparison.sources = {
        label: {"source": model.clip.source} | identify(paths[label]) | preprocessing(model.clip)
        for label, model in models.items()
    }
    comparison.evaluated = _evaluated(on, config, len(photos), start, scores) | data.facts
    texts = [comparison.table(), f"started from: {start.source}", f"judged on:    {len(photos):,} photos, {PHOTOS[on]}"]
    texts += _preprocessing_notes(models)
    more: dict[str, Any] = {}
    if ends is not None:

        def evaluate(clip: Clip) -> dict[str, Any]:
            found = compare_zero_shot(
                {"": clip},
                photos,
                data.profile,
                accelerator,
                prompt_sets=[sets[first]],
                scores=scores[:1],
                **shared,
            )
            return map_with_unseen(found.rows[0].ap, names, data.profile)

        curve = wise_ft_curve(models[ends[0]].clip, models[ends[1]].clip, alphas, evaluate)
        more["wise_ft"] = {"from": ends[0], "to": ends[1], "prompts": first, "score": scores[0], "curve": curve}
        texts += ["", wise_ft_table(curve), _wise_ft_note(ends, first, scores[0], on)]
    if report is not None:
        more["unseen"] = report.to_dict()
        texts += ["", report.table()]
    if accelerator.is_main_process:
        files = [file, None if out is None else Path(out) / "zero_shot_comparison.json"]
        texts += [""] if any(files) else []
        for path in filter(None, files):
            comparison.save(path, **more)
            texts.append(f"comparison: {path}")
        texts += _draw(comparison, more.get("wise_ft"), report, Path(out), on) if out is not None else []
    return "\n".join(texts)


def _photos(on: str, config: TrainConfig, data: LongTailData, unseen: LongTailData | None) -> datasets.Dataset:
    """The photos to judge, with the unseen classes where there are any."""
    if on not in PHOTOS:
        raise ValueError(f"photos to judge on are {on!r}; choose one of {', '.join(PHOTOS)}")
    if on == "test":
        return data.test if unseen is None else unseen.test
    if config.legacy_select_on_test:
        raise ConfigError("nothing was held out of train: legacy_select_on_test chose on test")
    if data.val is None:
        why = "refit is true" if config.refit else "val_fraction is 0"
        raise ConfigError(f"nothing was held out of train ({why}); judge on test, or train with a val_fraction of 0.2")
    if unseen is None:
        return data.val
    row_of = {name: row for row, name in enumerate(unseen.train["image_id"])}
    held_out = list(data.val["image_id"])
    if absent := [name for name in held_out if name not in row_of]:
        raise ValueError(
            f"{len(absent)} of the {len(held_out)} photos held out of train, {absent[0]} among them, are not there "
            "when the data is read with the unseen classes; judge these on test"
        )
    return unseen.train.select([row_of[name] for name in held_out])


def _evaluated(on: str, config: TrainConfig, photos: int, start: Clip, scores: Sequence[str]) -> dict[str, Any]:
    protocol = asdict(protocol_of(config, start)) | {"score": list(scores)}
    for own in (preprocessing(start).keys() | {"selection"}) & protocol.keys():
        del protocol[own]  # each model's own business
    where: dict[str, Any] = {"split": config.test_list or config.test_split}
    if on == "held_out":
        where = {"split": on, "val_fraction": config.val_fraction, "seed": config.seed}
        protocol["unlabelled"] = "keep"  # photos are dropped, and `test_difficult` holds, in test alone
        if protocol["difficult"] is not None:
            settings = prepared_settings(str(config.data_root)) if config.dataset == "prepared" else config.to_dict()
            protocol["difficult"] = settings["difficult"]
    return {"dataset": config.dataset_name or config.dataset, **where, "images": photos, "protocol": protocol}


def _preprocessing_notes(models: Mapping[str, ZeroShotModel]) -> list[str]:
    """What each model wants its photos like, where they do not agree."""
    wanted = {label: preprocessing(model.clip) for label, model in models.items()}
    first = next(iter(wanted.values()))
    if all(own == first for own in wanted.values()):
        return []
    lines = [
        f"  {label}: {own['geometry']}, {own['interpolation']}, {own['image_size']} px, "
        f"mean {', '.join(f'{value:.3g}' for value in own['image_mean'])}"
        for label, own in wanted.items()
    ]
    return ["each model reads photos in its own way, so figures differ by that too:", *lines]


def _wise_ft_ends(labels: list[str]) -> tuple[str, str]:
    if {"zero-shot", "merged"} <= set(labels):
        return "zero-shot", "merged"
    if len(labels) == 2:
        return labels[0], labels[1]
    raise ValueError(
        f"WiSE-FT interpolates between two models, but {len(labels)} are compared ({', '.join(labels)}); "
        "name a finished run, or exactly two models"
    )


def _wise_ft_note(ends: tuple[str, str], prompts: str, score: str, on: str) -> str:
    what = "the test photos: choose alpha on photos held out of train, not here (--on held_out)."
    if on == "held_out":
        what = "photos held out of train: alpha may be chosen here, and is then judged on test."
    return f"WiSE-FT: alpha 0 is {ends[0]}, alpha 1 {ends[1]}; prompts {prompts}, {score}. The curve is of {what}"


def _vocabulary(names: Sequence[str], profile: ClassProfile, paths: Mapping[str, str]) -> Vocabulary:
    seen = set(profile.names)
    vocabulary = Vocabulary(tuple(profile.names), tuple(name for name in names if name not in seen))
    for source in paths.values():
        if not (Path(source) / FILE).is_file():
            continue
        trained = set(read_multilabel(source)["class_names"])
        if known := [name for name in vocabulary.unseen if name in trained]:
            raise ValueError(f"{source} was trained on {known[0]!r}, so it is no unseen class; leave it out")
    return vocabulary


def _draw(
    comparison: ZeroShotComparison, wise_ft: Mapping[str, Any] | None, report: UnseenReport | None, out: Path, on: str
) -> list[str]:
    from clip_more.evaluation.zero_shot_plots import plot_prompt_comparison, plot_unseen, plot_wise_ft

    lines = []
    try:
        plot_prompt_comparison(comparison, out / "prompt_comparison.png")
        lines.append(f"figure:     {out / 'prompt_comparison.png'}")
        if wise_ft is not None:
            plot_wise_ft(wise_ft["curve"], out / "wise_ft.png", labels=(wise_ft["from"], wise_ft["to"]), on=on)
            lines.append(f"figure:     {out / 'wise_ft.png'}")
        if report is not None and len(report.ap) > 1:
            plot_unseen(report, out / "unseen.png")
            lines.append(f"figure:     {out / 'unseen.png'}")
    except (ImportError, ValueError) as error:
        lines.append(f"figures are left out: {error}")
    return lines
