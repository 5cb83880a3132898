"""An image classifier as one file that runs without our code: ONNX or torch.export's .pt2, checked when written."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clip_more.files import written_aside
from clip_more.models.classifier import FeatureClassifier
from clip_more.models.image_classifier import Description, ImageClassifier

# Under this key an ONNX file's metadata, and under this name a .pt2's extra files, hold the description as JSON.
METADATA = "clip_more"
EXTRA_FILE = "classifier.json"
# Largest difference from torch that is let pass, times the logit scale: so much of a cosine.
TOLERANCE = 1e-4
_SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
# Protobuf holds no more in one file.
_ONNX_BYTES = 2**31 - 2**20

Runner = Callable[[Tensor], Tensor]


def write_graph(
    path: str | os.PathLike[str],
    module: ImageClassifier | FeatureClassifier,
    description: Description,
    form: str,
    photos: Sequence[str] = (),
) -> float:
    """Write a classifier as a graph with any number of photos a batch, run it, and keep it if it agrees with torch.

    Args:
        path: A file that ends in .onnx or .pt2, replaced if it is there.
        module: On the CPU, in eval mode.
        description: Goes into the file.
        form: `onnx`, or `torch` for torch.export's .pt2.
        photos: Paths of photos that it is checked on; random pixels without them.

    Returns:
        The largest difference of a logit from torch's, over the whole batch and its first photo alone.

    Raises:
        ValueError: `path` ends in something else, or what was written differs from torch; nothing is left then.
        PhotoError: One of the photos cannot be read.
        RuntimeError: ONNX's packages are absent.
    """
    path = Path(path)
    if path.suffix != _SUFFIXES[form]:
        raise ValueError(f"{path}: a file of form {form} must end in {_SUFFIXES[form]}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file")
    pixel_values = check_batch(module, description, photos)
    text = json.dumps(asdict(description), ensure_ascii=False)
    with written_aside(path) as aside:
        run = (_write_onnx if form == "onnx" else _write_torch)(aside, module, pixel_values, text)
        difference = largest_difference(module, run, pixel_values)
        limit = TOLERANCE * max(1.0, _largest_logit(module, pixel_values))
        if not difference <= limit:
            raise ValueError(
                f"{path} was not written: its logits differ from torch's by up to {difference:.1e}, and {limit:.1e} is "
                "what rounding may do. Another version of torch or of ONNX's packages may help"
            )
    return difference


@torch.no_grad()
def _largest_logit(module: ImageClassifier | FeatureClassifier, pixel_values: Tensor) -> float:
    """What rounding errors of a logit are in proportion to."""
    if isinstance(module, ImageClassifier):
        return float(module.weight.norm(dim=1).max())
    return float(module(pixel_values).abs().max())


@torch.no_grad()
def largest_difference(module: ImageClassifier | FeatureClassifier, run: Runner, pixel_values: Tensor) -> float:
    """Of logits, for the whole batch and for its first photo alone; nan counts as infinite."""
    far = 0.0
    for batch in (pixel_values, pixel_values[:1]):
        expected = module(batch)
        found = run(batch)
        if found.shape != expected.shape:
            return float("inf")
        difference = (found - expected).abs().max().item()
        far = max(far, difference if np.isfinite(difference) else float("inf"))
    return far


def check_batch(module: ImageClassifier | FeatureClassifier, description: Description, photos: Sequence[str]) -> Tensor:
    """(N, 3, H, W) of these photos, at most 8 of them, or three random ones.

    Raises:
        PhotoError: One cannot be read.
    """
    from clip_more.data.opening import open_photo

    size = description.image_size
    transform = description.transform()
    rows = [transform(open_photo({"path": path, "bytes": None}, path)) for path in photos[:: len(photos) // 8 or 1][:8]]
    if len(rows) > 1:
        return torch.stack(rows)
    generator = torch.Generator().manual_seed(0)
    return torch.cat([*(row[None] for row in rows), torch.randn(3, 3, size, size, generator=generator)])


def _write_torch(path: Path, module: ImageClassifier | FeatureClassifier, pixel_values: Tensor, text: str) -> Runner:
    program = _program(module, pixel_values)
    torch.export.save(program, path, extra_files={EXTRA_FILE: text})
    return torch.export.load(path).module()


def _write_onnx(path: Path, module: ImageClassifier | FeatureClassifier, pixel_values: Tensor, text: str) -> Runner:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (torch asks for it later, in other words)
    except ImportError as error:
        raise RuntimeError(f"{error}; ONNX files need pip install 'clip-more[onnx]'") from error
    if sum(tensor.nbytes for tensor in module.state_dict().values()) > _ONNX_BYTES:
        raise ValueError(f"{path.name}: the weights take more than 2 GB, the most that one ONNX file holds")
    with _quiet():
        written: Any = torch.onnx.export(
            _program(module, pixel_values),
            input_names=["pixel_values"],
            output_names=["logits"],
            dynamo=True,
            verbose=False,
        )
    written.model.metadata_props[METADATA] = text
    written.save(path, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run(["logits"], {"pixel_values": pixels.numpy()})[0])


def _program(module: ImageClassifier | FeatureClassifier, pixel_values: Tensor) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch")
    with torch.no_grad(), _quiet():
        return torch.export.export(module, (pixel_values[:2],), dynamic_shapes={"pixel_values": {0: batch}})


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' remarks to their own developers."""
    before = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
