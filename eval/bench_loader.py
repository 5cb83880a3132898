"""Section ``loader``: photos a second through our augmentation, and through transformers' CLIP image processor.

One thread, one photo at a time, from the file to ``(3, 224, 224)`` float32. The column ``dtype`` holds the shorter side
of the JPEGs. Photos are real where ``--photos`` names a folder of JPEGs or ``CLIP_MORE_TEST_DATA`` is set; else drawn:
smooth noise, edges and grain, about as many bytes a pixel as photos have.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
import torch

from bench_rows import Options, Row, compared, interleaved
from clip_more.config import TrainConfig
from clip_more.data.form import make_dataset
from clip_more.data.photos import Photos
from clip_more.data.prepare import prepare, read_prepared
from clip_more.data.transforms import train_transform

if TYPE_CHECKING:
    import datasets

SIZE = 224
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
JPEG_GOALS = {256: 1.4, 480: 2.0, 1080: 2.0}
PREPARED_GOAL = 5.0
MEMORY_GOAL = 1.05
FILES = {"train_list": "train.txt", "test_list": "test.txt", "class_file": "classes.txt"}


def loader(options: Options, photos: Path | None = None) -> Iterator[Row]:
    """Rows of the section."""
    count = 24 if options.quick else 64
    with one_thread(), tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        source = found_photos(photos, count) or drawn_photos(root / "drawn", count)
        for side, goal in JPEG_GOALS.items():
            if side > 480 and options.quick:
                continue
            # Real photos of about 256 pixels go as they are.
            paths = source if side == 256 else enlarged(source, side, root / str(side))
            dataset = make_dataset(paths, [[0]] * len(paths), ["photo"])
            prepared, cost = prepared_photos(paths, root / f"prepared_{side}")
            print(f"  {side}px: {cost}")
            contenders = {"jpeg": epoch(dataset), "prepared": epoch(prepared), "peer": peer_epoch(paths)}
            seconds = interleaved(contenders, options)
            rates = {name: [len(paths) / value for value in rounds] for name, rounds in seconds.items()}
            for name, least in (("jpeg", goal), ("prepared", PREPARED_GOAL)):
                row = f"loader.{name}_vs_processor"
                yield compared(row, f"{side}px", rates[name], rates["peer"], goal=least, unit="photos/s")
        yield memory_row(root, 1000 if options.quick else 4000)


def training_photos(dataset: datasets.Dataset) -> Photos:
    """What a training run loads."""
    return Photos(dataset, train_transform(SIZE, MEAN, STD), seed=0)


def epoch(dataset: datasets.Dataset) -> Callable[[], None]:
    """All samples once, with the next augmentation each time."""
    photos = training_photos(dataset)
    passes = itertools.count()

    def run() -> None:
        first = next(passes) * len(photos)
        for index in range(len(photos)):
            check_shape(photos[first + index, index]["pixel_values"])

    return run


def peer_epoch(paths: Sequence[str]) -> Callable[[], None]:
    """All photos once through the processor that ``CLIPProcessor`` has by default."""
    from transformers import CLIPImageProcessor

    processor = CLIPImageProcessor()

    def run() -> None:
        for path in paths:
            photo = PIL.Image.open(path).convert("RGB")
            check_shape(processor(photo, return_tensors="pt")["pixel_values"][0])

    return run


def check_shape(pixel_values: torch.Tensor) -> None:
    """Both must make the same thing.

    Raises:
        RuntimeError: It is another shape or type.
    """
    if pixel_values.shape != (3, SIZE, SIZE) or pixel_values.dtype != torch.float32:
        raise RuntimeError(f"A contender gives {tuple(pixel_values.shape)} {pixel_values.dtype}.")


def prepared_photos(paths: Sequence[str], root: Path) -> tuple[datasets.Dataset, str]:
    """The same photos as `clip-more prepare` writes them, with a shorter side of 256, and what that costs."""
    # Test is one photo that is not in train.
    other = drawn_photos(root / "test", 1)
    for name, listed in (("train", paths), ("test", other)):
        (root / f"{name}.txt").write_text("".join(f"{path}\t0\n" for path in listed))
    (root / "classes.txt").write_text("photo\n")
    files = {key: str(root / name) for key, name in FILES.items()}
    report = prepare(TrainConfig(dataset="lists", data_root="/", **files), root / "arrow", progress=False)
    ratio, photos = report.disk_bytes / report.source_bytes, sum(report.written.values())
    cost = f"prepared, {report.disk_bytes / photos:,.0f} bytes a photo, {ratio:.1f} times the JPEGs"
    return read_prepared(root / "arrow", "train"), cost


def memory_row(root: Path, count: int) -> Row:
    """Resident MiB after an epoch of small photos beside those after its first tenth."""
    names = drawn_photos(root / "small", 50, width=85, height=64)
    paths = (names * (count // len(names) + 1))[:count]
    photos = training_photos(make_dataset(paths, [[0]] * count, ["photo"]))
    start = 0.0
    for index in range(count):
        if index == count // 10:
            start = resident()
        photos[index]
    return compared("loader.memory_flat", "64px", [resident()], [start], goal=MEMORY_GOAL, unit="MiB")


def resident() -> float:
    """MiB of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def found_photos(folder: Path | None, count: int) -> list[str]:
    """JPEGs of a folder, or of the test data; none where neither is given."""
    if folder is None and not (folder := _test_photos()):
        return []
    paths = sorted(str(path) for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not paths:
        raise ValueError(f"There are no JPEGs below {folder}.")
    return paths[:: max(1, len(paths) // count)][:count]


def _test_photos() -> Path | None:
    data = os.environ.get("CLIP_MORE_TEST_DATA")
    return Path(data) / "voc2012_lt_tiny" if data else None


def drawn_photos(folder: Path, count: int, width: int = 341, height: int = 256) -> list[str]:
    """JPEGs of quality 90 with a photo's spectrum: octaves of smooth noise, some edges, a little grain."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        pixels = np.full((height, width, 3), 128.0)
        for octave in range(1, 7):
            cells = rng.normal(0, 70 / octave**1.2, (2**octave, 2**octave, 3)).astype(np.float32)
            planes = [PIL.Image.fromarray(cells[..., c]).resize((width, height), PIL.Image.BICUBIC) for c in range(3)]
            pixels += np.stack([np.asarray(plane) for plane in planes], axis=-1)
        for _ in range(12):
            x, y = rng.integers(0, width), rng.integers(0, height)
            across, down = rng.integers(8, width // 3), rng.integers(8, height // 3)
            pixels[y : y + down, x : x + across] += rng.normal(0, 30, 3)
        pixels += rng.normal(0, 5, (height, width, 1))
        paths.append(str(folder / f"{number}.jpg"))
        PIL.Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def enlarged(paths: Sequence[str], side: int, folder: Path) -> list[str]:
    """The same photos with a longer shorter side, as JPEGs of quality 90."""
    folder.mkdir()
    results = []
    for number, path in enumerate(paths):
        photo = PIL.Image.open(path).convert("RGB")
        size = [round(length * side / min(photo.size)) for length in photo.size]
        results.append(str(folder / f"{number}.jpg"))
        photo.resize(size, PIL.Image.BICUBIC).save(results[-1], quality=90)
    return results


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on a single thread inside."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
