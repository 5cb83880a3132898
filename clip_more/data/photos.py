"""From a row of the common form to a training sample: the photo opened, transformed, and set beside its targets."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import torch

from clip_more.data.form import class_names
from clip_more.data.opening import PhotoError, Reduction, open_photo, raw_pixels
from clip_more.data.rows import Rows
from clip_more.data.transforms import Augment

if TYPE_CHECKING:
    import datasets


# Data workers whose photo in hand is remembered.
_WORKERS = 1024


class Photos(torch.utils.data.Dataset):
    """Samples for a `DataLoader`: `pixel_values (3, H, W)`, `targets (C,)`, `known (C,)` and `index`.

    Args:
        dataset: photos and labels in the common form.
        transform: PIL RGB image -> float tensor `(3, H, W)` (or `(V, 3, H, W)`). `Augment` gets the pixels of a
            prepared data set where they lie, and JPEGs decoded no larger than it has use for.
        seed: With a seed, whatever `transform` draws from torch's CPU generator is drawn from (seed, position) alone,
            position being the sample's place in the stream of training photos: the same sample comes out for any number
            of workers and after a resume, and the caller's generator is left as it was. Without one, transforms draw
            from torch's generator as they find it.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        transform: Callable[[Any], torch.Tensor],
        seed: int | None = None,
    ) -> None:
        self.transform = transform
        self.seed = seed
        self.num_classes = len(class_names(dataset))
        self._rows = Rows(dataset)
        # Shared memory: the main process reads what its workers write.
        self._shared = torch.full((1 + _WORKERS, 2), -1, dtype=torch.int64).share_memory_()
        self._hands = self._shared.numpy()  # (process id, photo), the main process first, then worker by worker

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Any]:
        """One sample: `pixel_values` float32, `targets` float32, `known` bool, `index` int.

        Args:
            index: of the photo, which is then its position too; or position and index, as `PhotoStream` has them.

        Raises:
            PhotoError: the photo is absent, cut off, or not an image.
        """
        position, index = index if isinstance(index, tuple) else (index, index)
        index = range(len(self))[int(index)]
        targets = np.zeros(self.num_classes, dtype=np.float32)
        targets[self._rows.labels(index)] = 1.0
        known = np.ones(self.num_classes, dtype=bool)
        known[self._rows.unknown(index)] = False
        worker = torch.utils.data.get_worker_info()
        hand = self._hands[0 if worker is None else 1 + worker.id % _WORKERS]
        hand[:] = os.getpid(), index
        try:
            pixel_values = self._pixel_values(index, int(position))
        finally:
            hand[1] = -1
        return {
            "pixel_values": pixel_values,
            "targets": torch.from_numpy(targets),
            "known": torch.from_numpy(known),
            "index": index,
        }

    def in_hand(self) -> dict[int, str | None]:
        """The photo that each process is opening just now, by process id: its path, or its image id; None between two.

        Holds data workers and, as soon as it has opened a photo itself, the main process.
        """
        return {pid: None if index < 0 else self._name(index) for pid, index in self._hands.tolist() if pid >= 0}

    def _pixel_values(self, index: int, position: int) -> torch.Tensor:
        content = self._rows.content(index)
        if isinstance(self.transform, Augment):
            draws = self.transform.draw(self._seed_of(position))
            pixels = None if content is None else raw_pixels(content)
            if pixels is None:
                return self.transform(self._open(index, content, partial(self.transform.reduction, draws=draws)), draws)
            return self.transform(pixels, draws)
        photo = self._open(index, content)
        seed = self._seed_of(position)
        if seed is None:
            return self.transform(photo)
        before = torch.get_rng_state()
        # torch.manual_seed would reseed the accelerators too, and with it the dropout of the step in progress.
        torch.default_generator.manual_seed(seed)
        try:
            return self.transform(photo)
        finally:
            torch.set_rng_state(before)

    def _open(self, index: int, content: memoryview | None, reduction: Reduction | None = None) -> PIL.Image.Image:
        image = {"path": self._rows.path(index), "bytes": content}
        return open_photo(image, self._rows.image_id(index), reduction=reduction)

    def _seed_of(self, position: int) -> int | None:
        """64 bits of (seed, position): numpy's SeedSequence takes ten times as long to mix them."""
        if self.seed is None:
            return None
        words = hashlib.blake2b(b"%d %d" % (self.seed, position), digest_size=8)
        return int.from_bytes(words.digest(), "little")

    def _name(self, index: int) -> str:
        return self._rows.path(index) or f"(in memory, image_id {self._rows.image_id(index)})"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_hands"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._hands = self._shared.numpy()


def undecoded(dataset: datasets.Dataset) -> datasets.Dataset:
    """The same rows with `image` as `{"path", "bytes"}`, so that we open the photo, and the errors are ours."""
    import datasets

    return dataset.cast_column("image", datasets.Image(decode=False))


def verify_photos(dataset: datasets.Dataset, *, progress: bool = True) -> list[tuple[str, str]]:
    """Decode every photo once and return `(path, cause)` of each that cannot be read."""
    from tqdm import tqdm

    unreadable = []
    rows = undecoded(dataset).select_columns(["image", "image_id"])
    for row in tqdm(rows, desc="checking photos", unit="photo", disable=not progress):
        try:
            open_photo(row["image"], row["image_id"])
        except PhotoError as error:
            path = row["image"].get("path") or row["image_id"]
            unreadable.append((path, error.cause))
    return unreadable
