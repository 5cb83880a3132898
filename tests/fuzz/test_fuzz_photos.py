import io
import warnings

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clip_more.data.form import make_dataset
from clip_more.data.opening import PhotoError, open_photo, raw_bytes, raw_pixels
from clip_more.data.photos import Photos
from clip_more.data.transforms import test_transform as judged
from clip_more.data.transforms import train_transform
from tests.fuzz.harness import damaged, fuzz, outcome

AUGMENT, PREPROCESS = (make(8, [0.5] * 3, [0.5] * 3) for make in (train_transform, judged))


def encoded(name, mode="RGB", **options):
    pixels = np.random.default_rng(0).integers(0, 256, (10, 14, 3), dtype=np.uint8)
    photo, stream = PIL.Image.fromarray(pixels).convert(mode), io.BytesIO()
    photo.save(stream, name, **options)
    return stream.getvalue()


EXIF = PIL.Image.Exif()
EXIF[0x0112] = 6
WHOLE = {
    "JPEG": encoded("JPEG", exif=EXIF),
    "JPEG, progressive": encoded("JPEG", progressive=True),
    "JPEG, CMYK": encoded("JPEG", "CMYK"),
    "PNG": encoded("PNG", exif=EXIF),
    "PNG, palette": encoded("PNG", "P", transparency=3),
    "GIF": encoded("GIF", save_all=True, append_images=[PIL.Image.new("RGB", (20, 9))]),
    "WebP": encoded("WEBP"),
    "TIFF": encoded("TIFF", "I;16"),
    "BMP": encoded("BMP"),
}


@pytest.fixture(autouse=True)
def pillows_remarks():
    """Pillow warns of much that it then reads, or refuses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("kind", WHOLE)
def test_whole_photos_are_read(kind):
    assert open_photo({"path": None, "bytes": WHOLE[kind]}, "x7").mode == "RGB"


@fuzz
@given(content=st.sampled_from(sorted(WHOLE)).flatmap(lambda kind: damaged(WHOLE[kind])))
def test_photos(content):
    photo = outcome("photos", lambda: open_photo({"path": None, "bytes": content}, "x7"), "image_id x7")
    if photo is not None:
        assert photo.mode == "RGB"
        assert np.asarray(photo).shape == (photo.height, photo.width, 3)


@fuzz
@given(content=st.one_of(damaged(WHOLE["JPEG"]), damaged(raw_bytes(PIL.Image.new("RGB", (5, 4))), (b"P6", b"99"))))
def test_samples(content):
    """Either transform gives a finite sample, or refuses the photo, and both refuse the same ones."""
    dataset = make_dataset([content], [[0]], ["cat"], image_ids=["x7"])
    samples = [
        outcome("samples", lambda t=t: Photos(dataset, t, seed=0)[0]["pixel_values"], "image_id x7")
        for t in (AUGMENT, PREPROCESS)
    ]
    for sample in samples:
        assert sample is None or (sample.shape == (3, 8, 8) and bool(torch.isfinite(sample).all()))
    assert (samples[0] is None) is (samples[1] is None)


@fuzz
@given(content=st.one_of(damaged(raw_bytes(PIL.Image.new("RGB", (5, 4)))), st.binary(max_size=40)))
def test_raw_pixels(content):
    pixels = raw_pixels(content)
    if pixels is not None:
        assert np.array_equal(pixels, np.asarray(open_photo({"path": None, "bytes": content}, "x7")))


def test_the_error_of_a_damaged_photo_is_ours():
    with pytest.raises(PhotoError):
        open_photo({"path": None, "bytes": WHOLE["PNG"][:60]}, "x7")
