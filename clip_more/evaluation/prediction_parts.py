"""What predictions lie in on disk: parts that are complete or absent, and the one Parquet file that they become."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clip_more.data.paths import Skipped, write_skipped
from clip_more.evaluation.thresholds import sigmoid
from clip_more.files import written_aside
from clip_more.lock import held

# Key of a file's Parquet metadata that holds the plan.
METADATA = b"clip_more"
_OWN = ("image_id", "labels")
_CAUSE = "cause"
# Names that `written_aside` gives in the folder of parts.
_HALF_WRITTEN = re.compile(r"\.(plan\.\d+\.json|part-\d{6,}\.\d+\.parquet)")


@dataclass(frozen=True)
class Part:
    """Consecutive photos of the list: those of one part file, and of one row group of the result."""

    number: int
    photos: range

    @property
    def name(self) -> str:
        """Of its file."""
        return f"part-{self.number:06d}.parquet"


class PredictionParts:
    """The folder of parts beside a result that is not finished, claimed for one plan.

    Args:
        out: The Parquet file to come.
        plan: Everything that the predictions depend on, as JSON holds it.
        parts: All of them.
    """

    def __init__(self, out: str | os.PathLike[str], plan: dict[str, Any], parts: Sequence[Part]) -> None:
        self.out = Path(out)
        self.plan = plan
        self.parts = list(parts)
        self.folder = self.out.with_name(f"{self.out.name}.parts")
        self.skipped = self.out.with_name(f"{self.out.name}.skipped.csv")

    def finished(self) -> bool:
        """Whether the result is there."""
        return self.out.exists()

    def alone(self) -> AbstractContextManager[None]:
        """Inside, no other call can write this result; for one process of a call.

        Raises:
            ConfigError: Another process writes it now.
        """
        return held(
            self.out.with_name(f".{self.out.name}.lock"),
            lambda who: f"{self.out} is being written by {who}; wait for it, or name another --out",
        )

    def claim(self) -> None:
        """Make the folder, or recognise it, or the finished result, as this plan's own; inside `alone`.

        Raises:
            ValueError: What is there is of another plan; the difference is told.
        """
        path = self.folder / "plan.json"
        if self.finished():
            self._check_result()
            if path.is_file():  # a kill came between the last two steps of `join`
                self._remove_parts()
            self._clear_leftovers()
            return
        if path.is_file():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{path} is not JSON ({error}); delete {self.folder} to start anew") from error
            self._compare(found, self.folder)
        elif self.folder.exists():
            foreign = sorted(entry.name for entry in self.folder.iterdir() if not _HALF_WRITTEN.fullmatch(entry.name))
            if foreign:
                raise ValueError(
                    f"{self.folder} is not empty and holds no parts of ours ({foreign[0]}); name another --out"
                )
        self._clear_leftovers()
        with written_aside(path) as aside:
            aside.write_text(json.dumps(self.plan, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def absent(self) -> list[Part]:
        """Parts that are still to be made: not there, or damaged."""
        return [part for part in self.parts if not self._intact(part)]

    def write(self, part: Part, table: pa.Table) -> None:
        """Put a part in its place."""
        with written_aside(self.folder / part.name) as aside:
            pq.write_table(table, aside, use_dictionary=False)

    def join(self) -> None:
        """Make the result, and the list of photos that could not be read; take the parts away."""
        skipped: list[Skipped] = []
        tables = self._tables(skipped)
        first = next(tables)
        metadata = {METADATA: json.dumps(self.plan, ensure_ascii=False).encode()}
        schema = first.schema.with_metadata({**(first.schema.metadata or {}), **metadata})
        with written_aside(self.out) as aside:
            with pq.ParquetWriter(aside, schema, use_dictionary=False) as writer:
                writer.write_table(first.replace_schema_metadata(schema.metadata))
                for table in tables:
                    writer.write_table(table.replace_schema_metadata(schema.metadata))
            if skipped:
                write_skipped(skipped, self.skipped)
            else:
                self.skipped.unlink(missing_ok=True)
        self._remove_parts()

    def summary(self) -> str:
        """What came of it, once it is finished."""
        photos = pq.read_metadata(self.out).num_rows
        skipped = self.plan["photos"] - photos
        told = f"; {skipped:,} could not be read: {self.skipped}" if skipped else ""
        return f"{photos:,} photos: {self.out}{told}"

    def _remove_parts(self) -> None:
        """Take the folder away; under another name first, since half a folder of parts would be nobody's."""
        old = self.out.with_name(f".{self.folder.name}.old-{os.getpid()}")
        self.folder.rename(old)
        shutil.rmtree(old)

    def _clear_leftovers(self) -> None:
        """Remove what killed calls left half-written or half-removed, by the names that only this class gives."""
        result, skipped = (
            rf"\.{re.escape(path.stem)}\.\d+{re.escape(path.suffix)}" for path in (self.out, self.skipped)
        )
        beside = re.compile(rf"{result}|{skipped}|\.{re.escape(self.folder.name)}\.old-\d+")
        for folder, names in ((self.folder, _HALF_WRITTEN), (self.out.parent, beside)):
            for stale in folder.glob(".*"):
                if names.fullmatch(stale.name):
                    shutil.rmtree(stale) if stale.is_dir() and not stale.is_symlink() else stale.unlink()

    def _tables(self, skipped: list[Skipped]) -> Iterator[pa.Table]:
        for part in self.parts:
            table = pq.read_table(self.folder / part.name)
            cause = table.column(_CAUSE).combine_chunks()
            broken = table.filter(cause.is_valid())
            skipped += map(Skipped, broken.column("image_id").to_pylist(), broken.column(_CAUSE).to_pylist())
            yield table.filter(cause.is_null()).drop_columns(_CAUSE)

    def _check_result(self) -> None:
        try:
            found = json.loads(pq.read_schema(self.out).metadata[METADATA])
        except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as error:
            raise ValueError(f"{self.out} is there and holds no predictions of ours; name another file") from error
        self._compare(found, self.out)

    def _intact(self, part: Part) -> bool:
        try:
            return pq.read_metadata(self.folder / part.name).num_rows == len(part.photos)
        except (OSError, ValueError, pa.ArrowException):
            return False

    def _compare(self, found: Any, where: Path) -> None:
        found = found if isinstance(found, dict) else {}
        keys = {**self.plan, **found}.keys() - {"versions", "made_from"}
        changed = sorted(key for key in keys if found.get(key) != self.plan.get(key))
        if changed:
            then, now = (_short(plan.get(changed[0])) for plan in (found, self.plan))
            raise ValueError(
                f"{where} is of other predictions: {changed[0]} was {then} and is {now} now; name another --out, or "
                "delete it to start anew"
            )


def as_table(
    image_ids: Sequence[str],
    logits: np.ndarray,
    causes: Sequence[str],
    names: Sequence[str],
    thresholds: Sequence[float] | None,
    *,
    softmax: bool = False,
) -> pa.Table:
    """A part's rows.

    Args:
        image_ids: N names of photos.
        logits: (N, C) float32.
        causes: N sentences why a photo could not be read; "" where it could.
        names: C classes.
        thresholds: C probabilities from which on a class is present; 0.5 without them.
        softmax: Every photo shows exactly one class: probabilities are a softmax, and the class of the highest is
            present.

    Returns:
        `image_id`, a float32 column of probabilities for each class (null where the photo could not be read), `labels`
        (names of the classes present), and `cause`.
    """
    broken = np.array([bool(cause) for cause in causes], dtype=bool)
    if softmax:
        probabilities = _softmax(logits)
        present = np.arange(len(names)) == logits.argmax(axis=1)[:, None]
    else:
        probabilities = sigmoid(logits)
        present = probabilities >= (0.5 if thresholds is None else np.asarray(thresholds))
    present[broken] = False
    rows, classes = np.nonzero(present)
    ends = np.searchsorted(rows, np.arange(len(image_ids) + 1)).astype(np.int32)
    labels = pa.ListArray.from_arrays(ends, pa.array(list(names), pa.string()).take(pa.array(classes, pa.int64())))
    columns: dict[str, pa.Array] = {"image_id": pa.array(image_ids, pa.string())}
    for name, column in zip(class_columns(names), probabilities.astype(np.float32).T, strict=True):
        columns[name] = pa.array(column, pa.float32(), mask=broken)
    columns["labels"] = labels
    columns[_CAUSE] = pa.array([cause or None for cause in causes], pa.string())
    return pa.table(columns)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def class_columns(names: Sequence[str]) -> list[str]:
    """The column of each class: its name, made distinct where that is taken."""
    taken, columns = {*_OWN, _CAUSE}, []
    for name in names:
        while name in taken:
            name += " (class)"
        taken.add(name)
        columns.append(name)
    return columns


def first_look(out: str | os.PathLike[str], names: Sequence[str], top: int, photos: int = 10) -> str:
    """The classes of highest probability of the first photos, a line a photo."""
    file = pq.ParquetFile(out)
    lines: list[str] = []
    columns = class_columns(names)
    for group in range(file.num_row_groups):
        table = file.read_row_group(group).slice(0, photos - len(lines))
        for row in table.to_pylist():
            best = sorted(zip((row[column] for column in columns), names, strict=True), reverse=True)[:top]
            lines.append(f"{row['image_id']}: " + ", ".join(f"{name} {value:.3f}" for value, name in best))
        if len(lines) == photos:
            break
    return "\n".join(lines)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else f"{text[:100]}..."
