"""Photos of a data set encoded anew and written in shards, each of which is complete or absent."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import PIL.Image
import torch
from torch.utils.data import DataLoader

from clip_more.data.opening import PhotoError, open_photo, raw_bytes
from clip_more.data.rows import Rows
from clip_more.files import written_aside

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

PHOTOS_A_SHARD = 1000

# What is held in memory before it goes to the file.
BATCH_BYTES = 32 * 2**20
JPEG_QUALITY = 95


class Encoded(NamedTuple):
    """A photo as it is stored (None with a cause where it cannot be read), and the bytes of its source."""

    content: bytes | None
    cause: str
    source_bytes: int


class Encoder(torch.utils.data.Dataset):
    """Photos with their shorter side at most `short_side`, as uncompressed PPM ("raw") or as JPEG ("jpeg")."""

    def __init__(self, dataset: datasets.Dataset, short_side: int, store: str) -> None:
        self._rows = Rows(dataset)
        self.short_side = short_side
        self.store = store

    def __len__(self) -> int:
        return len(self._rows)

    def _reduction(self, width: int, height: int) -> float:
        """At twice the size wanted, a JPEG's decoder loses nothing that the resize would keep."""
        return min(width, height) / (2 * self.short_side)

    def __getitem__(self, row: int) -> Encoded:
        content, path, image_id = self._rows.content(row), self._rows.path(row), self._rows.image_id(row)
        source_bytes = len(content) if content is not None else _size(path)
        try:
            photo = open_photo({"path": path, "bytes": content}, image_id, reduction=self._reduction)
        except PhotoError as error:
            return Encoded(None, error.cause, source_bytes)
        photo = _resized(photo, self.short_side)
        if self.store == "raw":
            return Encoded(raw_bytes(photo), "", source_bytes)
        if max(photo.size) > 65_500:
            return Encoded(None, f"{photo.width} x {photo.height} pixels are more than a JPEG holds", source_bytes)
        stream = io.BytesIO()
        # From its array, without the comments and profiles of the source, which Pillow would write again.
        PIL.Image.fromarray(np.asarray(photo)).save(stream, "JPEG", quality=JPEG_QUALITY)
        return Encoded(stream.getvalue(), "", source_bytes)


@dataclass(frozen=True)
class Shard:
    """What became of the photos of one shard.

    Attributes:
        file: name in the folder of its split.
        rows: photos written.
        bytes: size of the file.
        source_bytes: of the encoded photos that it was made from, the skipped ones included.
        skipped: `(image_id, cause)` of each photo that could not be read.
    """

    file: str
    rows: int
    bytes: int
    source_bytes: int
    skipped: list[tuple[str, str]]


def shard_rows(number_of_rows: int) -> list[range]:
    """Which rows of the data set go to each shard."""
    return [range(a, min(a + PHOTOS_A_SHARD, number_of_rows)) for a in range(0, number_of_rows, PHOTOS_A_SHARD)]


def finished_shard(folder: Path, notes: Path, rows: range) -> Shard | None:
    """The shard that `notes` says holds these rows; None where it was not finished, or is not as it was."""
    try:
        found = json.loads(notes.read_text(encoding="utf-8"))
        shard = Shard(**{**found, "skipped": [(str(name), str(cause)) for name, cause in found["skipped"]]})
        whole = (folder / shard.file).stat().st_size == shard.bytes and isinstance(shard.source_bytes, int)
        return shard if whole and shard.rows + len(shard.skipped) == len(rows) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write_shard(
    path: Path, notes: Path, dataset: datasets.Dataset, rows: Sequence[int], encoded: Iterator[Encoded]
) -> Shard:
    """Write the next `len(rows)` photos of `encoded` as an Arrow stream, the file first and then its notes."""
    import pyarrow as pa

    schema = dataset.features.arrow_schema
    labels = dataset.select_columns(["labels", "image_id", "unknown"]).with_format("arrow")[rows[0] : rows[-1] + 1]
    skipped: list[tuple[str, str]] = []
    written = source_bytes = held = 0
    places: list[int] = []
    contents: list[bytes] = []
    with written_aside(path) as aside:
        with pa.OSFile(str(aside), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
            for place in range(len(rows)):
                photo = next(encoded)
                source_bytes += photo.source_bytes
                if photo.content is None:
                    skipped.append((labels["image_id"][place].as_py(), photo.cause))
                else:
                    places.append(place)
                    contents.append(photo.content)
                    held += len(photo.content)
                if contents and (held > BATCH_BYTES or place == len(rows) - 1):
                    stream.write_batch(_batch(schema, labels, places, contents))
                    written += len(places)
                    places, contents, held = [], [], 0
        with aside.open("rb") as done:
            os.fsync(done.fileno())
        size = aside.stat().st_size
    shard = Shard(path.name, written, size, source_bytes, skipped)
    with written_aside(notes) as aside:
        aside.write_text(json.dumps(asdict(shard)), encoding="utf-8")
    return shard


def encoded_photos(encoder: Encoder, rows: Sequence[int], workers: int) -> Iterator[Encoded]:
    """The photos of these rows, in their order, encoded in `workers` processes (0: in this one)."""
    # A generator of its own: the loader would draw the workers' seeds from the caller's.
    loader: Any = DataLoader(
        encoder, batch_size=None, sampler=rows, num_workers=workers, collate_fn=_as_it_is, generator=torch.Generator()
    )
    return iter(loader)


def _as_it_is(photo: Any) -> Any:
    return photo


def _batch(schema: pa.Schema, labels: pa.Table, places: list[int], contents: list[bytes]) -> pa.RecordBatch:
    import pyarrow as pa

    columns = {name: labels[name].take(pa.array(places)).combine_chunks() for name in labels.column_names}
    stored: dict[str, list[Any]] = {"bytes": contents, "path": [None] * len(contents)}
    struct = schema.field("image").type
    columns["image"] = pa.StructArray.from_arrays(
        [pa.array(stored[field.name], field.type) for field in struct], fields=list(struct)
    )
    return pa.RecordBatch.from_arrays([columns[field.name].cast(field.type) for field in schema], schema=schema)


def _resized(photo: PIL.Image.Image, short_side: int) -> PIL.Image.Image:
    if min(photo.size) <= short_side:
        return photo
    size = (max(1, round(length * short_side / min(photo.size))) for length in photo.size)
    return photo.resize(tuple(size), PIL.Image.Resampling.BICUBIC)  # type: ignore[arg-type]


def _size(path: str | None) -> int:
    try:
        return os.stat(path or "").st_size
    except (OSError, ValueError):
        return 0
