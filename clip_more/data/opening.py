"""Opening photos: 8-bit RGB the right way up, or one sentence that says why not."""

from __future__ import annotations

import io
import math
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

# Photos with more are refused: a small file can unpack to any number of them. Phone cameras reach 200 million.
MAX_PIXELS = 250_000_000

_ORIENTATION = 0x0112
_TURN = PIL.Image.Transpose
# What undoes each EXIF orientation.
_TURNS = {
    2: _TURN.FLIP_LEFT_RIGHT, 3: _TURN.ROTATE_180, 4: _TURN.FLIP_TOP_BOTTOM, 5: _TURN.TRANSPOSE,
    6: _TURN.ROTATE_270, 7: _TURN.TRANSVERSE, 8: _TURN.ROTATE_90,
}  # fmt: skip
_SIDEWAYS = tuple(_TURNS[number] for number in (5, 6, 7, 8))
_PILLOW_LIMIT = threading.Lock()


# From width and height of the upright photo to how many times smaller its decoder may make it.
Reduction = Callable[[int, int], float]


class PhotoError(ValueError):
    """A photo that cannot be read; the text names it and says why.

    Attributes:
        cause: the why alone.
    """

    # One argument must do: torch builds the error anew where it comes out of a worker.
    def __init__(self, text: str, cause: str = "") -> None:
        super().__init__(text)
        self.cause = cause


def open_photo(image: dict[str, Any], image_id: str, *, reduction: Reduction | None = None) -> PIL.Image.Image:
    """Open a photo (path or encoded bytes) as 8-bit RGB, turned as its EXIF orientation says.

    Transparent parts become white; 16 bits a channel keep their upper byte; an animation gives its first frame.

    Args:
        image: `path` and `bytes`, of which the second goes first.
        image_id: what errors call a photo without a path.
        reduction: allows a JPEG to be decoded at half, quarter or eighth size, in which its decoder averages pixels
            instead of making them all. Photos are opened in full without it.

    Raises:
        PhotoError: it is absent, empty, cut off, not an image, of a kind that has no RGB form, or has more pixels than
            `MAX_PIXELS`.
    """
    path = image.get("path") or f"(in memory, image_id {image_id})"
    content = image.get("bytes")
    try:
        if content is None and not image.get("path"):
            raise ValueError("its row has neither path nor bytes")
        with _header(io.BytesIO(content) if content is not None else path) as photo:
            width, height = photo.size
            if width * height > MAX_PIXELS:
                raise ValueError(
                    f"{width} x {height} pixels are more than {MAX_PIXELS:,} (a decompression bomb, it seems); if they "
                    "are meant, save it smaller"
                )
            if photo.format in ("EPS", "WMF"):
                raise ValueError(f"it is a drawing ({photo.format}), which Pillow would hand to another program")
            turn = _TURNS.get(_orientation(photo))
            if reduction is not None:
                allowed = reduction(*((height, width) if turn in _SIDEWAYS else (width, height)))
                times = next((times for times in (8, 4, 2) if times <= min(allowed, width, height)), 1)
                photo.draft(None, (width // times, height // times))
            photo.load()
            rgb = _rgb(photo)
            return rgb if turn is None else rgb.transpose(turn)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
        cause = _cause(error, content, path)
        raise PhotoError(f"cannot read photo {path}: {cause}. Replace it, or drop it from the list", cause) from error


# What `clip-more prepare` stores: binary PPM, which stock `datasets` decodes too.
_RAW = re.compile(rb"P6\n(\d{1,9}) (\d{1,9})\n255\n")


def raw_bytes(photo: PIL.Image.Image) -> bytes:
    """An RGB photo as uncompressed PPM, for `raw_pixels`."""
    return b"P6\n%d %d\n255\n" % photo.size + photo.tobytes()


def raw_pixels(content: bytes | memoryview) -> np.ndarray | None:
    """A view `(H, W, 3)` uint8 of the bytes that `raw_bytes` gave; None for any other content."""
    header = _RAW.match(memoryview(content)[:32])
    if header is None:
        return None
    shape = (int(header[2]), int(header[1]), 3)
    if 0 in shape or len(content) - header.end() != math.prod(shape):
        return None
    return np.frombuffer(content, dtype=np.uint8, offset=header.end()).reshape(shape)


def _header(source: str | io.BytesIO) -> PIL.Image.Image:
    """The photo with only its header read, under our own bound of pixels.

    Pillow warns from 89 megapixels on and refuses from 179 on without saying the size. Its bound is one for the whole
    process, so nobody else of ours may change it meanwhile.
    """
    with _PILLOW_LIMIT:
        bound, PIL.Image.MAX_IMAGE_PIXELS = PIL.Image.MAX_IMAGE_PIXELS, None
        try:
            return PIL.Image.open(source)
        finally:
            PIL.Image.MAX_IMAGE_PIXELS = bound


def _orientation(photo: PIL.Image.Image) -> Any:
    """EXIF's number for how the camera was held; None where it is absent or the EXIF data are damaged."""
    try:
        return photo.getexif().get(_ORIENTATION)
    except Exception:  # the pixels are fine, and Pillow raises whatever it stumbles over
        return None


def _rgb(photo: PIL.Image.Image) -> PIL.Image.Image:
    if photo.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range; save it with 8 bits a channel")
    if photo.mode.startswith("I"):
        values = np.asarray(photo)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError("its pixels are integers beyond 16 bits; save it with 8 bits a channel")
        photo = PIL.Image.fromarray((values.astype(np.uint16) >> 8).astype(np.uint8))
    if photo.has_transparency_data:
        white = PIL.Image.new("RGBA", photo.size, "white")
        photo = PIL.Image.alpha_composite(white, photo.convert("RGBA"))
    # Pillow copies an image that is RGB already.
    return photo if photo.mode == "RGB" else photo.convert("RGB")


def _cause(error: Exception, content: bytes | memoryview | None, path: str) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, PIL.UnidentifiedImageError):
        head = _first_bytes(content, path)
        if not head:
            return "the file is empty"
        if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
            return "it holds markup (a web page, or an SVG drawing), not a photo"
        return "it is not an image that Pillow knows"
    return f"{error}" or type(error).__name__


def _first_bytes(content: bytes | memoryview | None, path: str) -> bytes:
    if content is not None:
        return bytes(memoryview(content)[:256])
    with Path(path).open("rb") as file:
        return file.read(256)
