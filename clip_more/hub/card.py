"""The model card: metadata for the Hub, figures by group, and usage that runs as printed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clip_more.config import TrainConfig
    from clip_more.evaluation.results import Results

_TAGS = ["clip", "multi-label", "long-tail", "more", "clip-more"]
# Shown whether or not they differ from the default; and what says nothing about the model.
_ALWAYS = {"dataset", "model", "tuning", "loss", "epochs", "batch_size", "lr", "seed"}
_ALWAYS_WITH_MORE = {
    "rho", "amplitude", "amplitude_normalised", "alpha_schedule", "discrepancy_weighting", "discrepancy_gradient",
}  # fmt: skip
_NEVER = {"data_root", "output_dir", "run", "workers", "log_every", "trackers", "checkpoint_every", "push_to_hub"}

_LOAD = """\
import json
from pathlib import Path

import torch{extra}
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

folder = {folder}
model = CLIPModel.from_pretrained(folder).eval()
processor = CLIPProcessor.from_pretrained(folder)
head = json.loads((Path(folder) / "multilabel.json").read_text(encoding="utf-8"))

image = Image.open("photo.jpg").convert("RGB")
prompts = [prompt for row in head["prompts"] for prompt in row]
inputs = processor(text=prompts, images=image, return_tensors="pt", padding=True, truncation=True)
with torch.no_grad():
    outputs = model(**inputs)
"""
_LOGITS = """\
logits = outputs.logits_per_image + torch.tensor(head["bias"])
"""
_ENSEMBLE_LOGITS = """\
text = outputs.text_embeds.unflatten(0, (len(head["prompts"]), -1)).mean(dim=1)
text = text / text.norm(dim=-1, keepdim=True)
logits = model.logit_scale.exp() * outputs.image_embeds @ text.T + torch.tensor(head["bias"])
"""
_PRINT = """\
for name, probability in zip(head["class_names"], logits[0].{probability}.tolist()):
    print(f"{name}: {probability:.3f}")
"""
_FEATURE_USAGE = """\
import torch
from PIL import Image

from clip_more.models.classifier import load_classifier
from clip_more.models.image_classifier import describe

classifier, names = load_classifier(".")  # this folder
transform = describe(classifier.encoder, names).transform()
image = transform(Image.open("photo.jpg").convert("RGB"))
with torch.no_grad():
    logits = classifier(image[None])[0]
print(names[logits.argmax()])
"""


def model_card(
    *,
    name: str,
    multilabel: dict[str, Any],
    results: Results | None = None,
    config: TrainConfig | None = None,
    figure: str | None = None,
    open_clip: bool = True,
) -> str:
    """The text of a README.md for the Hub.

    Args:
        name: Title, and the model's name in the metadata.
        multilabel: Content of `multilabel.json`; decides between the usage for one prompt a class and for ensembles.
        results: Figures by group; the row `merged` goes into the metadata.
        config: The run's recipe; no path of it is printed in full.
        figure: File name of the figure beside the card.
        open_clip: Whether open_clip's files are there too.
    """
    repo_id = config.push_to_hub if config else None
    parts = [f"# {name}", _summary(multilabel, open_clip)]
    if results is not None:
        parts += ["## Results", _results(results)]
        if figure:
            parts.append(f"![AP per class against train frequency, before and after]({figure})")
    parts += ["## Usage", _usage(multilabel, repo_id, open_clip)]
    parts += ["## Training", _training(multilabel, config)]
    return f"---\n{_metadata(name, multilabel, results)}\n---\n\n" + "\n\n".join(parts) + "\n"


def feature_card(
    *, name: str, head: str, content: dict[str, Any], results: Results | None, config: TrainConfig, figure: str | None
) -> str:
    """The text of a README.md for a classifier with a head on features.

    Args:
        name: Title.
        head: Kind of the head.
        content: Of `head.json`.
        results: Figures by group.
        config: The run's recipe.
        figure: File name of the figure beside the card.
    """
    from huggingface_hub import ModelCardData

    more = ["more"] if config.tuning == "more" else []
    labels = "single-label" if config.task == "single_label" else "multi-label"
    tags = [labels, "long-tail", *more, "clip-more"]
    metadata = ModelCardData(license="apache-2.0", pipeline_tag="image-classification", tags=tags).to_yaml()
    summary = (
        f"An image classifier of {len(content['class_names'])} classes with a long tail: an encoder (`config.json`, "
        f"`model.safetensors`) and a {head.replace('_', ' ')} head on its features (`head.json`, `head.safetensors`)."
    )
    parts = [f"# {name}", summary]
    if results is not None:
        parts += ["## Results", _results(results)]
        if figure:
            parts.append(f"![AP per class against train frequency, before and after]({figure})")
    parts += ["## Usage", f"```python\n{_FEATURE_USAGE}```", "## Training", _training(content, config)]
    return f"---\n{metadata}\n---\n\n" + "\n\n".join(parts) + "\n"


def public_name(source: str) -> str:
    """`source` without the folders of this machine: a path becomes its last part."""
    start, colon, path = source.rpartition(":")
    if path and (path.startswith((".", "/", "~")) or path.count("/") > 1 or Path(path).exists()):
        return f"{start}{colon}{Path(path).name or 'a local folder'}"
    return source


def _metadata(name: str, multilabel: dict[str, Any], results: Results | None) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    scores = []
    if results is not None and "merged" in results.ap:
        dataset = str(results.evaluated.get("dataset", "unknown"))
        scores = [
            EvalResult(
                task_type="image-classification",
                task_name="multi-label image classification",
                dataset_type=dataset,
                dataset_name=dataset,
                dataset_split=_short(results.evaluated.get("split")),
                metric_type="mAP",
                metric_name=f"mAP, {group} classes" if group != "total" else "mAP, all classes",
                metric_value=round(100 * value, 2),
            )
            for group in ("total", "head", "medium", "tail")
            if (value := results.maps["merged"][group]) is not None
        ]
    source = multilabel.get("trained_from") or ""
    hub_id = source if source.count("/") == 1 and ":" not in source and " " not in source else None
    data = ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification",
        tags=_TAGS,
        base_model=hub_id,
        model_name=name if scores else None,
        eval_results=scores or None,
    )
    return data.to_yaml()


def _summary(multilabel: dict[str, Any], open_clip: bool) -> str:
    loads = "transformers' `CLIPModel` and open_clip load" if open_clip else "transformers' `CLIPModel` loads"
    return (
        f"A CLIP fine-tuned for multi-label recognition of {len(multilabel['class_names'])} classes with a long tail. "
        f"It has the keys, shapes and cost of the CLIP it came from: {loads} it without further code. "
        "`multilabel.json` holds what a plain CLIP has no field for: class names, prompts, a bias per class, and the "
        "class frequencies in the training set."
    )


def _results(results: Results) -> str:
    from clip_more.evaluation.groups import markdown_table

    rows: list[Any] = list(results.maps.items())
    shown: dict[str, Any] = {
        "baseline": next(iter(results.ap), None),
        "profile": results.profile,
        "intervals": results.intervals,
    }
    table = markdown_table(rows, **shown)
    evaluated = ", ".join(f"{key} {_short(value)}" for key, value in results.evaluated.items())
    profile = results.profile
    lines = [
        f"Mean average precision x 100 ({evaluated}). Groups by positives in train: head at least {profile.head_min}, "
        f"tail fewer than {profile.tail_max}, medium between; the number of classes in parentheses.",
        table,
    ]
    if results.chance is not None:
        chance = results.chance
        random = {"random ranking, mean": chance["mean"], "random ranking, 95 % quantile": chance["q95"]}
        lines[1] = markdown_table([*random.items(), *rows], **shown)
    without = results.maps["merged"]["classes_without_ap"] if "merged" in results.ap else []
    if without:
        lines.append(f"Without a positive in the evaluated set, and so in no mean: {', '.join(without)}.")
    lines.append(f"Protocol: {results.protocol}.")
    return "\n\n".join(lines)


def _usage(multilabel: dict[str, Any], repo_id: str | None, open_clip: bool) -> str:
    folder = f'snapshot_download("{repo_id}")' if repo_id else '"."  # this folder'
    extra = "\nfrom huggingface_hub import snapshot_download" if repo_id else ""
    logits = _LOGITS if len(multilabel["prompts"][0]) == 1 else _ENSEMBLE_LOGITS
    softmax = multilabel.get("softmax", False)
    # Not by format(): the text has braces of its own.
    printed = _PRINT.replace("{probability}", "softmax(dim=0)" if softmax else "sigmoid()")
    parts = [
        f"```python\n{_LOAD.format(folder=folder, extra=extra)}{logits}{printed}```",
        "Each photo has one class: probabilities are a softmax over the classes, biases included."
        if softmax
        else "Each class has a probability of its own. The zero-shot pipeline "
        '(`pipeline("zero-shot-image-classification")` with `hypothesis_template="{}"` and these prompts) loads this '
        "model too, but it leaves the bias out and takes a softmax over the classes, as if a photo showed exactly one: "
        "its scores are no multi-label scores.",
    ]
    if multilabel.get("geometry") == "pad":
        parts.append(
            "The figures above are of photos that were padded to a square with CLIP's mean colour. The image "
            "processors crop the centre instead, for want of padding: pad photos before handing them over."
        )
    if open_clip:
        place = f"hf-hub:{repo_id}" if repo_id else "local-dir:."
        parts.append(
            f'For open_clip: `open_clip.create_model_from_pretrained("{place}")` and '
            f'`open_clip.get_tokenizer("{place}")`; add the bias in the same way.'
        )
    return "\n\n".join(parts)


def _training(multilabel: dict[str, Any], config: TrainConfig | None) -> str:
    import yaml

    source = multilabel.get("trained_from") or "an unnamed CLIP"
    text = f"Started from: {source}."
    if "random weights" in source:
        text += " There was no pretraining: what the model knows comes from this training set alone."
    if config is None:
        return text
    values, defaults = config.to_dict(), type(config)().to_dict()
    always = _ALWAYS | _ALWAYS_WITH_MORE if config.tuning == "more" else _ALWAYS
    shown = {
        key: _short(value)
        for key, value in values.items()
        if key not in _NEVER and (key in always or value != defaults[key])
    }
    recipe = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True).strip()
    return f"{text} The main settings, and all that differ from the defaults:\n\n```yaml\n{recipe}\n```"


def _short(value: Any) -> Any:
    """A setting as it may be printed anywhere: paths by their last part."""
    if isinstance(value, dict):
        return {key: _short(own) for key, own in value.items()}
    return public_name(value) if isinstance(value, str) else value
