"""From a photo to CLIP's pixel values: random squares for training, declared geometries and views for judging."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Sequence

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F

INTERPOLATIONS = {"bicubic": PIL.Image.Resampling.BICUBIC, "bilinear": PIL.Image.Resampling.BILINEAR}
GEOMETRIES = ("crop", "squash", "pad")
VIEWS = ("one", "flip", "five_crop", "ten_crop")
CROPS = ("resized", "padded")

# Pixels of black on each side of a photo that the padded crop is cut from: the CIFAR papers'.
PADDING = 4

# Tries for a random square's box that fits, its bounds of width over height: those of torchvision's RandomResizedCrop.
TRIES = 10
LOG_RATIO = math.log(4 / 3)

# Photos longer than this many times their width are not resized whole before the square is cut out: a strip of
# 1 x 5000 pixels would become one of 224 x 1,120,000.
LONGEST = 16


class PixelTransform:
    """What both transforms share: which interpolation, and the way from bytes to normalised floats."""

    def __init__(self, size: int, mean: Sequence[float], std: Sequence[float], interpolation: str) -> None:
        _one_of("interpolation", interpolation, INTERPOLATIONS)
        self.size = size
        self.interpolation = interpolation
        std_ = torch.tensor(std, dtype=torch.float64)
        self._scale = (1 / (255 * std_)).float()[:, None, None]
        self._offset = (-torch.tensor(mean, dtype=torch.float64) / std_).float()[:, None, None]

    def _normalised(self, pixels: np.ndarray) -> torch.Tensor:
        """`(H, W, 3)` uint8 in any strides -> `(3, H, W)` float32.

        Planes are made of bytes and then turned to floats: strided floats would take three times as long.
        """
        planes = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        return planes.float().mul_(self._scale).add_(self._offset)


# Numbers in 0..1 that a random square is made of: scale, ratio and place of each try, then whether it is mirrored.
Draws = list[tuple[float, float, float, float]]


class Augment(PixelTransform):
    """A random part of the photo resized to a square, mirrored half of the time; see `train_transform`."""

    def __init__(
        self, size: int, mean: Sequence[float], std: Sequence[float], min_scale: float, flip: bool, interpolation: str
    ) -> None:
        super().__init__(size, mean, std, interpolation)
        if not 0 < min_scale <= 1:
            raise ValueError(f"min_scale must be above 0 and at most 1, not {min_scale}")
        self.min_scale = min_scale
        self.flip = flip

    def draw(self, seed: int | None = None) -> Draws:
        """Numbers of one augmentation: of this seed, or of one drawn from torch's CPU generator."""
        if seed is None:
            seed = int(torch.randint(2**62, ()))
        uniform = random.Random(seed).random
        return [(uniform(), uniform(), uniform(), uniform()) for _ in range(TRIES + 1)]

    def reduction(self, width: int, height: int, draws: Draws) -> float:
        """How many times smaller than `width x height` a photo may be decoded: the part drawn is never enlarged."""
        return min(self._box(width, height, draws)[2:]) / self.size

    def __call__(self, photo: PIL.Image.Image | np.ndarray, draws: Draws | None = None) -> torch.Tensor:
        """`(3, size, size)` float32 of an RGB image, or of its pixels `(H, W, 3)` uint8."""
        pixels = photo if isinstance(photo, np.ndarray) else _memory(photo)
        if draws is None:
            draws = self.draw()
        square = self._square(pixels, draws)
        return self._normalised(square[:, ::-1] if self.flip and draws[-1][0] < 0.5 else square)

    def _square(self, pixels: np.ndarray, draws: Draws) -> np.ndarray:
        """The box of `pixels`, resized to `(size, size, 3)` uint8."""
        left, top, width, height = self._box(pixels.shape[1], pixels.shape[0], draws)
        part = np.array(pixels[top : top + height, left : left + width])
        # In these strides torch sees channels-last, and takes its kernel for bytes: four times as fast as Pillow's,
        # whose values it meets within one step nearly everywhere. [None] after permute would hide them from it.
        batch = torch.from_numpy(part)[None].permute(0, 3, 1, 2)
        square = F.interpolate(batch, (self.size, self.size), mode=self.interpolation, antialias=True)
        return square[0, :3].permute(1, 2, 0).numpy()

    def _box(self, width: int, height: int, draws: Draws) -> tuple[int, int, int, int]:
        """Left, top, width and height, as torchvision's RandomResizedCrop draws them."""
        for scale, ratio, x, y in draws[:TRIES]:
            area = width * height * (self.min_scale + (1 - self.min_scale) * scale)
            aspect = math.exp(LOG_RATIO * (2 * ratio - 1))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                return int(x * (width - w + 1)), int(y * (height - h + 1)), w, h
        w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        return (width - w) // 2, (height - h) // 2, w, h


class PaddedCrop(Augment):
    """The photo, shifted by up to `PADDING` pixels each way over black, mirrored half of the time."""

    def __init__(self, size: int, mean: Sequence[float], std: Sequence[float], flip: bool, interpolation: str) -> None:
        super().__init__(size, mean, std, 1.0, flip, interpolation)

    def _square(self, pixels: np.ndarray, draws: Draws) -> np.ndarray:
        side = self.size + 2 * PADDING
        canvas = np.zeros((side, side, 3), dtype=np.uint8)
        canvas[PADDING:-PADDING, PADDING:-PADDING] = super()._square(pixels, draws)
        left, top = (int(draw * (2 * PADDING + 1)) for draw in draws[0][2:])
        return canvas[top : top + self.size, left : left + self.size]

    def _box(self, width: int, height: int, draws: Draws) -> tuple[int, int, int, int]:
        """The square in the middle."""
        side = min(width, height)
        return (width - side) // 2, (height - side) // 2, side, side


class Preprocess(PixelTransform):
    """A photo as its checkpoint wants to be judged on it; see `test_transform`."""

    def __init__(
        self,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        geometry: str,
        interpolation: str,
        views: str,
    ) -> None:
        super().__init__(size, mean, std, interpolation)
        _one_of("geometry", geometry, GEOMETRIES)
        _one_of("views", views, VIEWS)
        self.geometry = geometry
        self.views = views

    def __call__(self, photo: PIL.Image.Image) -> torch.Tensor:
        """`(3, size, size)` float32 of an RGB image, or `(V, 3, size, size)` where several views are wanted."""
        cuts = self.views in ("five_crop", "ten_crop")
        side = int(self.size * 256 / 224) if cuts else self.size
        width, height = (side, side) if self.geometry != "crop" else _shorter_side(photo.size, side)
        squares = self._corners(width, height, cuts)
        if max(width, height) > LONGEST * side:
            cut = [self._normalised(self._window(photo, x, y, width, height)) for x, y in squares]
        elif self.geometry == "pad":
            canvas = self._padded(photo, side)
            cut = [canvas[:, y : y + self.size, x : x + self.size] for x, y in squares]
        else:
            whole = self._resized(photo, width, height)
            cut = [self._normalised(whole[y : y + self.size, x : x + self.size]) for x, y in squares]
        if self.views == "one":
            return cut[0]
        stacked = torch.stack(cut)
        return stacked if self.views == "five_crop" else torch.cat([stacked, stacked.flip(-1)])

    def _corners(self, width: int, height: int, cuts: bool) -> list[tuple[int, int]]:
        """Left and top of every square to cut; an odd pixel beside the centre goes to the right and the bottom."""
        right, bottom = width - self.size, height - self.size
        centre = right // 2, bottom // 2
        return [(0, 0), (right, 0), (0, bottom), (right, bottom), centre] if cuts else [centre]

    def _resized(
        self, photo: PIL.Image.Image, width: int, height: int, box: tuple[float, float, float, float] | None = None
    ) -> np.ndarray:
        """`(height, width, 3)` uint8 of the photo, or of a box in it."""
        return np.asarray(photo.resize((width, height), INTERPOLATIONS[self.interpolation], box=box))

    def _padded(self, photo: PIL.Image.Image, side: int) -> torch.Tensor:
        """The whole photo in the middle of zeros, which are the mean colour, as pixel values."""
        width, height = (max(1, round(side * length / max(photo.size))) for length in photo.size)
        left, top = (side - width) // 2, (side - height) // 2
        canvas = torch.zeros(3, side, side)
        canvas[:, top : top + height, left : left + width] = self._normalised(self._resized(photo, width, height))
        return canvas

    def _window(self, photo: PIL.Image.Image, left: int, top: int, width: int, height: int) -> np.ndarray:
        """The square at `left`, `top` of the photo resized to `width x height`, of which nothing else is computed.

        Pillow then rounds in another order, so bytes may be some steps off what resizing the whole gives.
        """
        across, down = photo.width / width, photo.height / height
        right, bottom = min((left + self.size) * across, photo.width), min((top + self.size) * down, photo.height)
        return self._resized(photo, self.size, self.size, (left * across, top * down, right, bottom))


def train_transform(
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    min_scale: float = 0.5,
    flip: bool = True,
    interpolation: str = "bicubic",
    crop: str = "resized",
) -> Augment:
    """Augmentation for training: a random square of the photo, mirrored half of the time.

    `resized`: a random part of the photo, resized. Its share of the area is uniform in `min_scale..1`, the logarithm of
    its width over height uniform between those of 3/4 and 4/3.

    `padded`, for small photos such as CIFAR's: 4 pixels of black, which is 0 before normalisation, are put around the
    photo, and a square of `size` pixels cut out at a random place, all 81 alike. (Of a photo that is not of `size`
    pixels the square in the middle is resized to it first.)

    Args:
        size: side of the square, in pixels.
        mean: mean of each channel, in 0..1.
        std: standard deviation of each channel, in 0..1.
        min_scale: smallest share of the photo's area to cut out, in (0, 1]; without effect where `crop` is `padded`.
        flip: whether to mirror left and right (False where left and right mean something, as in digits).
        interpolation: bicubic or bilinear, with antialiasing.
        crop: `resized` or `padded`.

    Returns:
        PIL RGB image, or its pixels `(H, W, 3)` uint8, -> `(3, size, size)` float32. All draws come from torch's CPU
        generator.
    """
    _one_of("crop", crop, CROPS)
    if crop == "padded":
        return PaddedCrop(size, mean, std, flip, interpolation)
    return Augment(size, mean, std, min_scale, flip, interpolation)


def test_transform(
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    geometry: str = "crop",  # noqa: PT028 (this is no test)
    interpolation: str = "bicubic",  # noqa: PT028 (this is no test)
    views: str = "one",  # noqa: PT028 (this is no test)
) -> Preprocess:
    """How a photo becomes a square, or several, when a model is judged on it.

    Args:
        size: side of the square, in pixels.
        mean: mean of each channel, in 0..1.
        std: standard deviation of each channel, in 0..1.
        geometry: `crop`, CLIP's own: the shorter side resized to `size`, the centre cut out. `squash`: both sides
            resized to `size`. `pad`: the longer side resized to `size`, the photo in the middle of CLIP's mean colour,
            which is 0 in pixel values.
        interpolation: bicubic or bilinear, in Pillow, with antialiasing.
        views: `one`; `flip`: the square and its mirror image; `five_crop`: the four corners, then the centre, of the
            photo made in the same geometry at `size * 256 / 224`, rounded down; `ten_crop`: these and then their
            mirror images.

    Returns:
        PIL RGB image -> `(3, size, size)` float32, or `(V, 3, size, size)` for the 2, 5 or 10 views. With the defaults,
        pixel values are those of transformers' Pillow-backed CLIP image processor (of strips longer than 16 times
        their width, nearly those).
    """
    return Preprocess(size, mean, std, geometry, interpolation, views)


# Not a test, whatever pytest's naming rule says where this is imported.
test_transform.__test__ = False  # type: ignore[attr-defined]


def _one_of(key: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise ValueError(f"{key} is {value!r}; choose one of {', '.join(choices)}")


def _shorter_side(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Width and height with the shorter one made `side`, rounded as transformers rounds."""
    width, height = size
    return (side, int(side * height / width)) if width <= height else (int(side * width / height), side)


def _memory(photo: PIL.Image.Image) -> np.ndarray:
    """Pixels `(H, W, 4)` uint8 of an RGB image as they lie in Pillow's memory; a copy `(H, W, 3)` of a large one."""
    import pyarrow as pa

    try:
        return pa.array(photo).flatten().to_numpy().reshape(photo.height, photo.width, 4)
    except ValueError:  # it lies in several pieces
        return np.asarray(photo)
