"""Class frequencies of the train set, and the head, medium and tail groups that follow from them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clip_more.data.form import class_names, label_pairs
from clip_more.files import written_aside

if TYPE_CHECKING:
    import datasets

GROUPS = ("head", "medium", "tail")


@dataclass(frozen=True)
class ClassProfile:
    """Names and train counts of C classes, with the bounds that group them.

    Attributes:
        names: C class names.
        counts: C numbers of positives in train; unknown labels count in nothing.
        head_min: a class with at least this many positives is head.
        tail_max: a class with fewer positives than this is tail; those between are medium.
        photos: N, the photos that were counted; None in profiles of older results.
    """

    names: tuple[str, ...]
    counts: tuple[int, ...]
    head_min: int = 100
    tail_max: int = 20
    photos: int | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Raises ValueError where names and counts do not fit each other or the bounds overlap."""
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "counts", tuple(int(count) for count in self.counts))
        if len(self.names) != len(self.counts):
            raise ValueError(f"class profile: {len(self.names)} names but {len(self.counts)} counts")
        if len(set(self.names)) != len(self.names):
            raise ValueError("class profile: class names must differ")
        for name, count in zip(self.names, self.counts, strict=True):
            if count < 0:
                raise ValueError(f"class profile: class {name!r} has a negative count, {count}")
        if not 0 <= self.tail_max <= self.head_min:
            raise ValueError(
                f"class profile: bounds must satisfy 0 <= tail_max <= head_min, not tail_max {self.tail_max} and "
                f"head_min {self.head_min}"
            )

    @classmethod
    def from_dataset(cls, dataset: datasets.Dataset, head_min: int = 100, tail_max: int = 20) -> ClassProfile:
        """Count the positives of a train set in the common form."""
        names = class_names(dataset)
        counts = np.bincount(label_pairs(dataset)[1], minlength=len(names))
        return cls(tuple(names), tuple(counts.tolist()), head_min, tail_max, len(dataset))

    @property
    def groups(self) -> tuple[str, ...]:
        """The group of each class: "head", "medium" or "tail"."""
        return tuple(
            "head" if count >= self.head_min else "tail" if count < self.tail_max else "medium" for count in self.counts
        )

    def indices(self, group: str) -> list[int]:
        """The classes of one group, ascending."""
        if group not in GROUPS:
            raise ValueError(f"group {group!r} is none of {', '.join(GROUPS)}")
        return [index for index, own in enumerate(self.groups) if own == group]

    @property
    def prior(self) -> np.ndarray:
        """Share of each class in all positives, `n_c / sum n`: `(C,)` float64."""
        counts = np.asarray(self.counts, dtype=np.float64)
        if counts.sum() == 0:
            raise ValueError("class profile: no class has a train positive, so there is no prior")
        return counts / counts.sum()

    @property
    def frequency(self) -> np.ndarray:
        """Share of the photos that show each class, `n_c / N`, at least half a photo from 0 and 1: `(C,)` float64.

        Raises:
            ValueError: how many photos were counted is not known.
        """
        if not self.photos:
            raise ValueError("class profile: photos is missing, so class frequencies are not known; count it again")
        return np.clip(np.asarray(self.counts) / self.photos, 0.5 / self.photos, 1 - 0.5 / self.photos)

    def check_positives(self) -> None:
        """Refuse a class that train never shows.

        Raises:
            ValueError: naming every class without a train positive, and the key that drops it.
        """
        empty = [name for name, count in zip(self.names, self.counts, strict=True) if count == 0]
        if empty:
            listed = ", ".join(repr(name) for name in empty)
            kept = ", ".join(name for name in self.names if name not in empty)
            raise ValueError(
                f"{len(empty)} of {len(self.names)} classes have no positive in train: {listed}. Drop them by the "
                f"recipe's `classes:` key, which lists those to keep: `classes: [{kept}]`"
            )

    def to_dict(self) -> dict[str, Any]:
        """The profile as JSON values; `groups` is written for readers who do not know the bounds' meaning."""
        return {
            "names": list(self.names),
            "counts": list(self.counts),
            "groups": list(self.groups),
            "head_min": self.head_min,
            "tail_max": self.tail_max,
            **({} if self.photos is None else {"photos": self.photos}),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ClassProfile:
        """The profile that `to_dict` wrote.

        Raises:
            ValueError: a key is missing, a value is of the wrong kind, or the groups are not those of the bounds.
        """
        absent = [key for key in ("names", "counts", "head_min", "tail_max") if key not in values]
        if absent:
            raise ValueError(f"class profile: {', '.join(absent)} missing")
        photos = values.get("photos")
        whole = [*values["counts"], values["head_min"], values["tail_max"], *([] if photos is None else [photos])]
        if any(isinstance(number, bool) or not isinstance(number, int) for number in whole):
            raise ValueError("class profile: counts and bounds must be whole numbers")
        profile = cls(tuple(values["names"]), tuple(values["counts"]), values["head_min"], values["tail_max"], photos)
        if "groups" in values and tuple(values["groups"]) != profile.groups:
            raise ValueError("class profile: groups do not follow from counts and bounds; remove them or correct them")
        return profile

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the profile as JSON, complete or not at all."""
        with written_aside(path) as aside:
            aside.write_text(json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ClassProfile:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not a class profile; the text names it.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise FileNotFoundError(f"{path}: there is no class profile here") from None
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: not a class profile that can be read: {error}") from error
