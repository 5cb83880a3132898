"""Reading open_clip checkpoints: by name and tag, from one file, or from a folder with an `open_clip_config.json`."""

from __future__ import annotations

import importlib.util
import json
import pickle
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clip_more.models.convert import hf_config, open_clip_to_hf

if TYPE_CHECKING:
    from transformers import CLIPModel

CONFIG_FILE = "open_clip_config.json"
WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors")


def load_source(source: str) -> tuple[CLIPModel, dict[str, Any]]:
    """What `open_clip:<architecture>/<tag>` or `open_clip:<architecture>:<file>` names, with its preprocessing.

    Raises:
        ValueError, FileNotFoundError: See `load_named` and `load_file`.
    """
    name = source.removeprefix("open_clip:")
    arch, colon, path = name.partition(":")
    if colon:
        return load_file(arch, Path(path).expanduser()), {}
    arch, slash, tag = name.rpartition("/")
    if not slash:
        raise ValueError(f"{source} names no weights; write open_clip:{name}/<tag> or open_clip:{name}:<file>")
    return load_named(arch.replace("/", "-"), tag)


def load_named(arch: str, tag: str) -> tuple[CLIPModel, dict[str, Any]]:
    """A model that open_clip itself downloads, in transformers' form, and its preprocessing settings.

    QuickGELU is on where the tag's weights were trained with it, also under an architecture name that forgets it
    (`ViT-B-32/openai`): open_clip only warns there.

    Raises:
        ValueError: If the architecture is no plain ViT, or open_clip knows no such tag.
        FileNotFoundError: If the weights cannot be fetched.
    """
    import open_clip

    cfg = architecture(arch)
    hf_config(cfg)  # before the download: is it a plain ViT?
    pretrained = open_clip.get_pretrained_cfg(arch, tag)
    if not pretrained:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(arch)) or "none"
        raise ValueError(f"open_clip has no weights {tag!r} for {arch}; its tags are: {tags}")
    cfg["quick_gelu"] = bool(cfg.get("quick_gelu") or pretrained.get("quick_gelu"))
    try:
        theirs = open_clip.create_model(arch, pretrained=tag, force_quick_gelu=cfg["quick_gelu"])
    except Exception as error:  # open_clip raises RuntimeError for every failed download
        raise FileNotFoundError(
            f"open_clip could not fetch {arch}/{tag} (no network, or the Hub is set offline?): {error}"
        ) from error
    return open_clip_to_hf(theirs.state_dict(), cfg), dict(theirs.visual.preprocess_cfg)


def load_file(arch: str, path: Path) -> CLIPModel:
    """A model from one weight file of a named architecture.

    Raises:
        ValueError: If the architecture is no plain ViT or the weights do not fit it.
        FileNotFoundError: If there is no such file.
    """
    cfg = architecture(arch)
    hf_config(cfg)
    try:
        return open_clip_to_hf(read_weights(path), cfg).float()
    except ValueError as error:
        raise ValueError(f"{path} as {arch}: {error}") from error


def load_folder(folder: Path) -> tuple[CLIPModel, dict[str, Any]]:
    """A model from a folder in open_clip's form, and its preprocessing settings.

    Raises:
        ValueError: If the config is unreadable, the model is no plain ViT, or the weights do not fit.
        FileNotFoundError: If the folder has no weights.
    """
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        cfg = config["model_cfg"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not open_clip's: it needs a model_cfg ({error})") from error
    weights = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if weights is None:
        raise FileNotFoundError(f"{folder} has {CONFIG_FILE} but no weights ({', '.join(WEIGHT_FILES)})")
    try:
        return open_clip_to_hf(read_weights(weights), cfg).float(), config.get("preprocess_cfg", {})
    except ValueError as error:
        raise ValueError(f"{weights}: {error}") from error


def architecture(name: str) -> dict[str, Any]:
    """open_clip's `model_cfg` of a named architecture, read from its package without importing it (that takes seconds).

    Raises:
        ValueError: If open_clip is absent or has no such architecture.
    """
    spec = importlib.util.find_spec("open_clip")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"the architecture {name!r} is open_clip's, which is not installed: pip install open_clip_torch"
        )
    folder = Path(spec.submodule_search_locations[0]) / "model_configs"
    path = folder / f"{name.replace('/', '-')}.json"
    if not path.is_file():
        near = sorted(p.stem for p in folder.glob("ViT-*.json") if p.stem[:5] == name[:5]) or ["ViT-B-32", "ViT-B-16"]
        raise ValueError(f"open_clip has no architecture {name!r}; it has {', '.join(near[:12])}, ...")
    return json.loads(path.read_text(encoding="utf-8"))


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from `.safetensors`, or from a PyTorch file read with `weights_only=True`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is a TorchScript archive, holds more than weights, or is no weight file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no weight file {path}")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file as load_safetensors

        try:
            return load_safetensors(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is no readable safetensors file: {error}") from error
    if _is_torchscript(path):
        raise ValueError(
            f"{path} is a TorchScript archive (OpenAI's first release form), which is a program, not just weights. If "
            "you trust it, keep its weights alone: torch.save(torch.jit.load(path, 'cpu').state_dict(), 'weights.pt'); "
            "or let open_clip fetch the same weights: open_clip:ViT-B-32/openai"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as weights alone (torch.load, weights_only=True): {error}") from error
    content = content.get("state_dict", content) if isinstance(content, dict) else {}
    state = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise ValueError(f"{path} holds no weights: expected a state dict, or a checkpoint with the key state_dict")
    return {key.removeprefix("module.").removeprefix("_orig_mod."): value for key, value in state.items()}


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name or name.endswith("constants.pkl") for name in archive.namelist())
