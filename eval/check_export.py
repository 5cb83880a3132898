"""Check on real photos that a run's exports are, in stock transformers, open_clip and PEFT, the classifier it trained.

python eval/check_export.py runs/coco_mini-bce_more --photos ~/data/coco_mini/val2017

"ours" are the logits of merged/ as this project reads it, less the bias, for which a plain CLIP has no field; "shared"
is one tensor of photos preprocessed as this project evaluates them. Stock libraries make no ensembles: of several
templates, each prompt is compared by itself. CPU only. Exit code: 0 all ok, 1 a check FAILED, 2 nothing to check.
"""

from __future__ import annotations

import argparse
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clip_more.data.opening import open_photo
from clip_more.data.transforms import test_transform
from clip_more.models.classifier import load_classifier
from clip_more.models.heads import PromptHead
from clip_more.models.multilabel import FILE, read_multilabel

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
LIMIT = 1e-5  # of cosines and probabilities; times the scale, of logits
LINE = "{:50} {:>10} {:>8}  {}"
FOOTNOTE = """
Preprocessing has no limit: transformers resizes tensors by torchvision, this project photos by Pillow (a grey level
of rounding); open_clip's crop rounds half a pixel to even (a pixel off if the resized photo is 3, 7, ... too long)."""


class Export:
    """A run's export, some photos, and the table of what was compared."""

    def __init__(self, run: Path, folder: Path, count: int) -> None:
        if not (run / "merged" / FILE).is_file():
            raise FileNotFoundError(f"{run} is no run with an export: it has no merged/{FILE}")
        paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)[:count]
        if not paths:
            raise FileNotFoundError(f"there is no folder {folder} with photos in it ({', '.join(SUFFIXES)})")
        self.photos = [open_photo({"path": str(path)}, path.name) for path in paths]
        self.run, self.merged, self.failed = run, run / "merged", False
        self.classifier, names = load_classifier(self.merged)
        clip, content = self.classifier.clip, read_multilabel(self.merged)
        self.prompts, self.scale = [prompt for row in content["prompts"] for prompt in row], content["logit_scale"]
        if len(self.prompts) > len(names):
            self.classifier.head = PromptHead(clip, [[prompt] for prompt in self.prompts], self.scale)
        transform = test_transform(clip.image_size, clip.image_mean, clip.image_std)
        self.pixels = torch.stack([transform(photo) for photo in self.photos])
        self.ours = self.logits(self.pixels)

    def logits(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, P) of ours, P being the prompts."""
        return self.classifier(pixels) - self.classifier.head.bias

    def stock(self, folder: Path, tail: Path | None = None) -> Any:
        """What CLIPModel (by PEFT, with a tail) and the tokenizer in `folder` make of shared pixels and prompts."""
        from peft import PeftModel
        from transformers import AutoTokenizer, CLIPModel

        model: Any = CLIPModel.from_pretrained(folder)
        model = PeftModel.from_pretrained(model, tail).eval() if tail else model
        tokens = AutoTokenizer.from_pretrained(folder)(self.prompts, padding=True, truncation=True, return_tensors="pt")
        return model(**tokens, pixel_values=self.pixels)

    def row(self, check: str, difference: Tensor | float, limit: float | None = None, note: str = "") -> None:
        """Print the largest absolute difference and whether it is within the limit, which a NaN never is."""
        largest = float(torch.as_tensor(difference).abs().max())
        verdict = "reported" if limit is None else "ok" if largest <= limit else "FAILED"
        self.failed |= verdict == "FAILED"
        bound = "" if limit is None else f"{limit:.2g}"
        print(LINE.format(check, f"{largest:.2g}", bound, f"{verdict}{note and ': '}{note}"), flush=True)

    def preprocessing(self, library: str, pixels: Tensor) -> None:
        """Report how far a library's own preprocessing leads from the shared pixels, and ours with it."""
        unlike = int(((pixels - self.pixels).abs().amax(dim=(1, 2, 3)) > 1e-6).sum())
        self.row(f"pixels: {library} v shared", pixels - self.pixels, note=f"on {unlike} of {len(pixels)} photos")
        self.row(f"logits: ours on pixels of {library} v on shared", self.logits(pixels) - self.ours)


def keys_and_shapes(export: Export) -> None:
    """Count the weights of merged that are not those of a plain CLIP of its own config.json, or of general."""
    from safetensors.torch import load_file
    from transformers import CLIPConfig, CLIPModel

    merged = load_file(export.merged / "model.safetensors")
    with torch.device("meta"):
        others = {"plain CLIP": CLIPModel(CLIPConfig.from_pretrained(export.merged)).state_dict()}
    if (export.run / "general").is_dir():
        others["general"] = load_file(export.run / "general" / "model.safetensors")
    for name, other in others.items():
        pairs = {(key, weight.shape) for key, weight in merged.items()} ^ {(k, w.shape) for k, w in other.items()}
        export.row(f"keys and shapes: merged v {name}", len(pairs), 0, min(pairs)[0] if pairs else f"all {len(other)}")


def both_libraries(export: Export) -> None:
    """Compare merged in transformers and in open_clip."""
    stock = export.stock(export.merged)
    export.row("logits: transformers v ours", stock.logits_per_image - export.ours, LIMIT * export.scale)
    if not (export.merged / "open_clip_config.json").is_file():
        print("open_clip: skipped, merged/ has no files for it (export leaves them out where it cannot run the model)")
        return
    import open_clip

    source = f"local-dir:{export.merged}"
    model, transform = open_clip.create_model_from_pretrained(source)
    images = model.eval().encode_image(export.pixels, normalize=True)
    cosines = images @ model.encode_text(open_clip.get_tokenizer(source)(export.prompts), normalize=True).T
    export.row("cosines: open_clip v transformers", cosines - stock.image_embeds @ stock.text_embeds.T, LIMIT)
    export.row("logits: open_clip v ours", model.logit_scale.exp() * cosines - export.ours, LIMIT * export.scale)
    export.preprocessing("open_clip", torch.stack([transform(photo) for photo in export.photos]))


def zero_shot_pipeline(export: Export) -> None:
    """Compare the pipeline's scores with the softmax of ours, both on the pixels of the pipeline's image processor."""
    from transformers import pipeline

    pipe: Any = pipeline("zero-shot-image-classification", model=str(export.merged), device="cpu")
    pixels = pipe.image_processor(images=export.photos, return_tensors="pt")["pixel_values"]
    answers = pipe(export.photos, candidate_labels=export.prompts, hypothesis_template="{}")
    found = [{answer["label"]: answer["score"] for answer in photo} for photo in answers]
    scores = torch.tensor([[photo[prompt] for prompt in export.prompts] for photo in found])
    export.row("softmax: pipeline v ours, on the pipeline's pixels", scores - export.logits(pixels).softmax(1), LIMIT)
    export.preprocessing("transformers", pixels)


def general_and_tail(export: Export) -> None:
    """Compare general in transformers with tail by PEFT."""
    if not (export.run / "tail").is_dir():
        print("general + tail by PEFT: skipped, this run has no tail/")
        return
    logits = export.stock(export.run / "general", export.run / "tail").logits_per_image
    export.row("logits: general + tail by PEFT v ours", logits - export.ours, LIMIT * export.scale)


@torch.no_grad()
def main(arguments: list[str] | None = None) -> int:
    """Print the table row by row; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run: merged/, and general/ and tail/ with a tail")
    parser.add_argument("--photos", type=Path, required=True, metavar="FOLDER", help="its first ones by name are read")
    parser.add_argument("--count", type=int, default=32, help="photos at most, all in one batch (default: 32)")
    options = parser.parse_args(arguments)
    if options.count < 1:
        parser.error(f"--count is {options.count}; it takes at least one photo")
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        export = Export(options.run, options.photos, options.count)
    except (ValueError, OSError) as error:
        parser.exit(2, f"check_export: {error}\n")
    print(*(f"{name} {metadata.version(name)}" for name in ("transformers", "open_clip_torch", "peft")), sep=", ")
    header = "{} photos, {} prompts, scale {:.4g}; logits vary by {:.2g} (std) between photos\n"
    print(header.format(*export.ours.shape, export.scale, export.ours.std(dim=0, correction=0).mean()))
    print(LINE.format("check", "difference", "limit", "").rstrip())
    for check in (keys_and_shapes, both_libraries, zero_shot_pipeline, general_and_tail):
        try:
            check(export)
        except Exception as error:  # whatever a stock library raises, it did not take the export
            export.row(check.__name__, float("nan"), 0, " ".join(f"{type(error).__name__}: {error}".split())[:200])
    print(FOOTNOTE)
    return int(export.failed)


if __name__ == "__main__":
    raise SystemExit(main())
