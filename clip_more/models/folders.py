"""Finding a checkpoint's folder, on this disk or on the Hub, and reading transformers' form of CLIP from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from clip_more.models.open_clip_files import CONFIG_FILE

DIGITS_FOLDER = Path(__file__).parent.parent / "assets" / "digits_clip"
_SETTINGS = ("*.json", "*.txt")
_WEIGHTS = ("model.safetensors", "model-*.safetensors"), ("pytorch_model*.bin",)
_OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors",), ("open_clip_pytorch_model.bin",)


def find_folder(source: str) -> tuple[Path, str]:
    """The folder that `source` means, fetched from the Hub if need be, and the name to print for it.

    Raises:
        FileNotFoundError: If there is no such folder or Hub model, or it holds no CLIP, saying where one may be.
        ValueError: If `source` is a file.
    """
    folder, printed = Path(source).expanduser(), source
    if source == "digits":
        folder, printed = DIGITS_FOLDER, "digits (tiny CLIP pretrained on scenes of handwritten digits)"
    elif folder.is_file():
        raise ValueError(f"{source} is a file; give its folder, or open_clip:<architecture>:{source}")
    elif not folder.is_dir():
        if source.startswith((".", "/", "~")) or source.count("/") > 1:
            raise FileNotFoundError(f"there is no folder {source}")
        folder = _fetch(source)
    if not any((folder / name).is_file() for name in ("config.json", CONFIG_FILE)):
        hint = ""
        if (folder / "adapter_config.json").is_file():
            hint = "; it is a tail: give general/ or merged/ beside it"
        elif (folder / "merged" / "config.json").is_file():
            hint = f"; did you mean {folder / 'merged'}?"
        raise FileNotFoundError(f"{source} holds no CLIP: it has neither config.json nor {CONFIG_FILE}{hint}")
    return folder, printed


def load_transformers(folder: Path) -> Any:
    """The `CLIPModel` in `folder`, in fp32 and eval mode.

    Raises:
        FileNotFoundError: If there are no weights.
        ValueError: If it is another kind of model, or weights are missing (they would silently stay random).
    """
    from transformers import CLIPConfig, CLIPModel

    kind = CLIPConfig.get_config_dict(folder)[0].get("model_type")
    if kind != "clip":
        raise ValueError(f"{folder / 'config.json'} describes a model of type {kind!r}; this project loads type 'clip'")
    try:
        loaded: Any = CLIPModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    except OSError as error:
        raise FileNotFoundError(f"{folder} has a config.json but no readable weights: {error}") from error
    model, report = loaded
    if report["missing_keys"]:
        raise ValueError(f"the weights in {folder} lack {min(report['missing_keys'])}, which would stay random")
    return model.eval()


def _fetch(hub_id: str) -> Path:
    """The local snapshot of a Hub model: its settings and one set of weights."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=list(_SETTINGS)))
        for patterns in _WEIGHTS if (folder / "config.json").is_file() else _OPEN_CLIP_WEIGHTS:
            snapshot_download(hub_id, allow_patterns=list(patterns))
            if any(next(folder.glob(pattern), None) for pattern in patterns):
                break
    except (HFValidationError, OSError) as error:  # the Hub's own errors are OSErrors
        if isinstance(error, HfHubHTTPError):
            why = (
                f"the Hub answered {error.response.status_code}: is the id right, and does it ask for `hf auth login`?"
            )
        else:
            why = "it is no folder here, nor in the local Hub cache, and the Hub cannot be reached (or is set offline)"
        raise FileNotFoundError(
            f"cannot load {hub_id!r}: {why}. What works: tiny, small, digits, a folder, a Hub id, "
            "open_clip:<architecture>/<tag>; and under a head other than prompts cifar_resnet32, torchvision:<name>, "
            "timm:<name>"
        ) from error
    return folder
