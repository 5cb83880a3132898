import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest

from clip_more.data import opening
from clip_more.data.opening import PhotoError, open_photo, raw_bytes, raw_pixels

RED, GREEN = (255, 0, 0), (0, 255, 0)


def saved(folder, photo, name="a.png", **options):
    photo.save(folder / name, **options)
    return {"path": str(folder / name), "bytes": None}


def noise(width, height):
    return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def png(width, height, depth, colour, rows):
    """A PNG as bytes; depth 16 and colour types 2 (RGB) and 6 (RGBA) are more than Pillow writes."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_a_photo_is_turned_as_its_exif_says(tmp_path):
    photo = PIL.Image.new("RGB", (4, 2), RED)
    photo.paste(GREEN, (2, 0, 4, 2))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    opened = open_photo(saved(tmp_path, photo, exif=exif), "a")
    assert opened.size == (2, 4)
    assert opened.getpixel((0, 0)) == RED
    assert opened.getpixel((0, 3)) == GREEN


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparent_parts_become_white(tmp_path, mode):
    photo = PIL.Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    photo.putpixel((1, 0), (0, 0, 0, 0))
    opened = open_photo(saved(tmp_path, photo.convert(mode), "a.png" if mode != "PA" else "a.tif"), "a")
    assert [opened.getpixel((x, 0)) for x in range(2)] == [(0, 0, 0), (255, 255, 255)]


def test_a_transparent_palette_entry_becomes_white(tmp_path):
    photo = PIL.Image.new("P", (2, 1))
    photo.putpalette([255, 0, 0, 0, 0, 255])
    photo.putpixel((1, 0), 1)
    opened = open_photo(saved(tmp_path, photo, transparency=1), "a")
    assert [opened.getpixel((x, 0)) for x in range(2)] == [RED, (255, 255, 255)]


def test_sixteen_bit_greys_keep_their_upper_byte(tmp_path):
    photo = PIL.Image.fromarray(np.array([[0, 0x80FF, 0xFFFF]], dtype=np.uint16))
    opened = open_photo(saved(tmp_path, photo), "a")
    assert [opened.getpixel((x, 0))[0] for x in range(3)] == [0, 0x80, 0xFF]


@pytest.mark.parametrize("name", ["a.jpg", "a.tif"])
def test_cmyk_becomes_rgb_whether_stored_inverted_as_adobe_does_or_not(tmp_path, name):
    options = {"quality": 100} if name == "a.jpg" else {}
    image = saved(tmp_path, PIL.Image.new("CMYK", (8, 8), (0, 255, 255, 0)), name, **options)
    assert (b"Adobe" in Path(image["path"]).read_bytes()) is (name == "a.jpg")
    np.testing.assert_allclose(np.asarray(open_photo(image, "a"))[0, 0], RED, atol=3)


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (6, 4)])
def test_sixteen_bit_colours_keep_their_upper_byte(colour, channels):
    values = [0x80FF, 0x0100, 0xFFFF, 0xFFFF][:channels]
    opened = open_photo({"path": None, "bytes": png(1, 1, 16, colour, [struct.pack(f">{channels}H", *values)])}, "a")
    assert opened.getpixel((0, 0)) == (0x80, 0x01, 0xFF)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_every_orientation_is_turned_as_pillow_turns_it(tmp_path, orientation, name):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    image = saved(tmp_path, noise(9, 6), name, exif=exif)
    expected = PIL.ImageOps.exif_transpose(PIL.Image.open(image["path"])).convert("RGB")
    np.testing.assert_array_equal(np.asarray(open_photo(image, "a")), np.asarray(expected))


def test_damaged_exif_data_do_not_keep_a_photo_from_being_read(tmp_path):
    image = saved(tmp_path, noise(9, 6), "a.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own remark on the data
        assert open_photo(image, "a").size == (9, 6)


@pytest.mark.parametrize(("allowed", "width"), [(1.9, 64), (2.0, 32), (5.0, 16), (100.0, 8)])
def test_a_jpeg_is_decoded_no_smaller_than_allowed(tmp_path, allowed, width):
    image = saved(tmp_path, noise(64, 48).resize((64, 48)), "a.jpg")
    assert open_photo(image, "a", reduction=lambda *size: allowed).width == width


def test_how_small_a_turned_jpeg_may_be_is_asked_for_its_upright_form(tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    image = saved(tmp_path, noise(64, 32), "a.jpg", exif=exif)
    asked = []
    opened = open_photo(image, "a", reduction=lambda *size: asked.append(size) or 2)
    assert asked == [(32, 64)]
    assert opened.size == (16, 32)


def test_raw_bytes_are_a_ppm_that_pillow_reads_and_we_view():
    photo = noise(5, 3)
    content = raw_bytes(photo)
    np.testing.assert_array_equal(np.asarray(PIL.Image.open(io.BytesIO(content))), np.asarray(photo))
    pixels = raw_pixels(content)
    np.testing.assert_array_equal(pixels, np.asarray(photo))
    assert pixels.base is not None


@pytest.mark.parametrize("content", [b"", b"P6\n2 1\n255\n12345", b"P6\n0 0\n255\n", b"P5\n1 1\n255\n1", b"\xff\xd8"])
def test_other_bytes_are_no_raw_photo(content):
    assert raw_pixels(content) is None


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [PIL.Image.new("RGB", (2, 2), colour) for colour in (RED, GREEN)]
    opened = open_photo(saved(tmp_path, frames[0], "a.gif", save_all=True, append_images=frames[1:]), "a")
    assert opened.getpixel((0, 0)) == RED


def test_a_drawing_that_another_program_would_run_is_refused(tmp_path):
    with pytest.raises(
        PhotoError, match=r"a\.eps: it is a drawing \(EPS\), which Pillow would hand to another program"
    ):
        open_photo(saved(tmp_path, noise(4, 4), "a.eps"), "a")


def test_a_folder_is_no_photo(tmp_path):
    with pytest.raises(PhotoError, match=r"cannot read photo .*: .*[Ii]s a directory"):
        open_photo({"path": str(tmp_path), "bytes": None}, "a")


def test_a_row_without_path_and_bytes_is_named():
    with pytest.raises(PhotoError, match=r"\(in memory, image_id x7\): its row has neither path nor bytes"):
        open_photo({"path": None, "bytes": None}, "x7")


def test_a_decompression_bomb_is_refused_by_its_size():
    bomb = {"path": None, "bytes": png(60000, 50000, 8, 2, [])}
    with pytest.raises(
        PhotoError, match=r"image_id b\): 60000 x 50000 pixels are more than 250,000,000 \(a decompress"
    ):
        open_photo(bomb, "b")


def test_a_bomb_is_refused_before_it_is_decoded_smaller(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "MAX_PIXELS", 99)
    image = saved(tmp_path, noise(10, 10), "a.jpg")
    with pytest.raises(PhotoError, match=r"a\.jpg: 10 x 10 pixels are more than 99"):
        open_photo(image, "a", reduction=lambda *size: 2)
