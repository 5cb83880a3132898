"""Which photos of a data set are there, and what happens where they are not."""

from __future__ import annotations

import csv
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from clip_more.files import written_aside

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class Skipped:
    """A photo that a list names and the data set does not hold.

    Attributes:
        image_id: its name in the list.
        cause: why, in words.
    """

    image_id: str
    cause: str


def write_skipped(skipped: Sequence[Skipped], path: str | os.PathLike[str]) -> None:
    """All of them as a CSV of `image_id,cause`; complete or not at all."""
    with written_aside(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image_id", "cause"), *((photo.image_id, photo.cause) for photo in skipped)])


@dataclass
class PhotoPolicy:
    """What a reader does with photos that are absent, and with links that lead out of the data set.

    Attributes:
        missing: "refuse" the data set, "skip" the absent photos and go on with the others, or "allow" them: files
            are not looked at, for those who want the labels alone.
        follow_links: whether a photo may be a symbolic link to a file outside the data set's folder.
        skipped: every photo that was left out, in the order of reading; readers append to it. Rows read and rows
            skipped together are the rows listed.
    """

    missing: str = "refuse"
    follow_links: bool = False
    skipped: list[Skipped] = field(default_factory=list)

    def present(
        self, photos: Sequence[str], image_ids: Sequence[str], root: str | os.PathLike[str], where: str
    ) -> list[int]:
        """Row numbers of the photos that are there, ascending; those of the others go to `skipped`.

        Args:
            photos: N paths below `root`, from `photo_path`.
            image_ids: N names of the same photos.
            root: folder of the data set, that no link may leave.
            where: file that lists the photos, for errors.

        Raises:
            FileNotFoundError: photos are absent and `missing` is "refuse", or all of them are.
            ValueError: a link leaves `root` and `follow_links` is False.
        """
        if self.missing == "allow":
            return list(range(len(photos)))
        folders: dict[str, bool] = {}
        base = os.path.realpath(root)
        here: list[int] = []
        absent: list[int] = []
        for row, photo in enumerate(photos):
            try:
                mode = os.lstat(photo).st_mode
                if stat.S_ISLNK(mode):
                    mode = os.stat(photo).st_mode
                    inside = _below(os.path.realpath(photo), base)
                else:
                    folder = os.path.dirname(photo)
                    if folder not in folders:
                        folders[folder] = _below(os.path.realpath(folder), base)
                    inside = folders[folder]
            except (OSError, ValueError):
                absent.append(row)
                continue
            if not inside and not self.follow_links:
                raise ValueError(
                    f"{where}: photo {image_ids[row]!r} is reached by a symbolic link that leaves {root}; "
                    "copy it there, or allow such links with --follow_links true"
                )
            (here if stat.S_ISREG(mode) else absent).append(row)
        if absent and (self.missing == "refuse" or not here):
            first = ", ".join(photos[row] for row in absent[:3]) + (", ..." if len(absent) > 3 else "")
            skip = "" if self.missing == "skip" else ", or go on without them with --missing skip"
            raise FileNotFoundError(
                f"{where}: {len(absent)} of {len(photos)} photos are absent: {first}. Put them there, "
                f"or correct data_root{skip}"
            )
        self.skipped += [Skipped(image_ids[row], "there is no such file") for row in absent]
        return here


def absent_photos(dataset: datasets.Dataset) -> list[str]:
    """Paths of the photos that are no files; photos held in memory are there, and are not looked at."""
    import pyarrow.compute as pc

    images = dataset.data.column("image")
    paths, held = pc.struct_field(images, "path"), pc.is_valid(pc.struct_field(images, "bytes"))
    if dataset._indices is not None:
        rows = dataset._indices.column(0)
        paths, held = paths.take(rows), held.take(rows)
    return [
        path
        for path, in_memory in zip(paths.to_pylist(), held.to_pylist(), strict=True)
        if not in_memory and not os.path.isfile(path)
    ]


def photo_path(root: str | os.PathLike[str], name: str, where: str) -> str:
    """The path of a photo that a list or an annotation file names, which must lie under `root`.

    Args:
        root: folder that relative names start from.
        name: the name as written; an absolute one is taken where it lies under `root`.
        where: file (and line) that names the photo, for the error.

    Raises:
        ValueError: the name leaves `root`, or is none that a file can have.
    """
    base = os.path.abspath(root)
    path = os.path.normpath(os.path.join(base, name))
    if "\0" in name:
        raise ValueError(f"{where}: photo {name!r} holds a zero byte, which no file name can")
    if path == base or not _below(path, base):
        raise ValueError(f"{where}: photo {name!r} does not lie under {root}; write its path relative to that folder")
    return path


def keep(rows: Iterable[int], *columns: Sequence) -> tuple[list, ...]:
    """The given rows of several columns alike."""
    rows = list(rows)
    return tuple([column[row] for row in rows] for column in columns)


def _below(path: str, base: str) -> bool:
    return path == base or path.startswith(base.rstrip(os.sep) + os.sep)
