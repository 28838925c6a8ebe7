"""Every kind of image arrives as RGB; every broken one as an error with a reason."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

import synthetic_sources as synthetic
from andscale.data.images import check_image, decode_rgb, open_rgb, read_header, read_image_bytes
from andscale.errors import RunError


@pytest.mark.parametrize("name", synthetic.EVERY_KIND)
def test_every_kind_arrives_as_rgb(name):
    array = decode_rgb(synthetic.EVERY_KIND[name])
    assert array.shape == (16, 20, 3)
    assert array.dtype == np.uint8
    assert open_rgb(synthetic.EVERY_KIND[name]).mode == "RGB"
    assert (read_header(synthetic.EVERY_KIND[name]).width, check_image(synthetic.EVERY_KIND[name]).height) == (20, 16)


def png(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def test_sixteen_bit_gray_keeps_its_upper_bits():
    values = np.array([[0, 255, 256, 40000, 65535]], np.uint16)
    array = decode_rgb(png(Image.fromarray(values)))
    assert array[0, :, 0].tolist() == [0, 0, 1, 156, 255]
    assert (array == array[..., :1]).all()


def test_transparent_palette_shows_the_palette_colours():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert decode_rgb(png(image, transparency=bytes([0, 128]))).tolist() == [[[10, 20, 30], [200, 100, 50]]]


def test_alpha_is_dropped():
    image = Image.fromarray(np.array([[[1, 2, 3, 0], [4, 5, 6, 255]]], np.uint8), "RGBA")
    assert decode_rgb(png(image)).tolist() == [[[1, 2, 3], [4, 5, 6]]]


def test_exif_orientation_is_not_applied():
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 10)).save(buffer, "JPEG", exif=exif)
    assert decode_rgb(buffer.getvalue()).shape == (10, 20, 3)


@pytest.mark.parametrize(
    ("reduction", "shape"), [(1, (100, 75, 3)), (2, (50, 38, 3)), (4, (25, 19, 3)), (8, (13, 10, 3))]
)
def test_jpegs_are_decoded_at_a_fraction_of_their_size(reduction, shape):
    assert decode_rgb(synthetic.encoded("RGB", "JPEG", (75, 100)), reduction).shape == shape


def gif():
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "GIF")
    return buffer.getvalue()


def bomb(extent):
    """A PNG that says ``extent`` x ``extent``."""
    data = bytearray(synthetic.encoded())
    data[16:24] = struct.pack(">II", extent, extent)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


def progressive():
    buffer = io.BytesIO()
    Image.open(io.BytesIO(synthetic.encoded(size=(64, 64)))).save(buffer, "JPEG", progressive=True)
    return buffer.getvalue()


BROKEN = {
    "empty": b"",
    "text": b"no image at all",
    "gif": gif(),
    "bomb": bomb(20_000),
    "cut jpeg": synthetic.EVERY_KIND["a.jpg"][:-30],
    "cut progressive jpeg": progressive()[:-100],
    "cut png": synthetic.EVERY_KIND["b.png"][:-30],
    "cut webp": synthetic.EVERY_KIND["c.webp"][:-30],
    "cut bmp": synthetic.EVERY_KIND["d.bmp"][:-30],
    "header only": synthetic.EVERY_KIND["b.png"][:33],
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", BROKEN)
def test_broken_images_are_errors_of_one_line(name):
    for function in (check_image, decode_rgb):
        with pytest.raises(RunError) as error:
            function(BROKEN[name])
        assert "\n" not in str(error.value)
        assert "BytesIO" not in str(error.value)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("extent", [0, 10_000])
def test_extents_that_cannot_be_are_refused_before_decoding(extent):
    """10,000 x 10,000 pixels are more than Pillow warns of and less than it refuses."""
    with pytest.raises(RunError, match="pixels|not a JPEG|IHDR|chunk"):
        read_header(bomb(extent))


def test_bytes_of_an_image_are_complete_or_an_error(tmp_path):
    (tmp_path / "shard").write_bytes(bytes(range(100)))
    descriptor = os.open(tmp_path / "shard", os.O_RDONLY)
    try:
        assert read_image_bytes(descriptor, 10, 5) == bytes(range(10, 15))
        with pytest.raises(RunError, match="ends at byte 100"):
            read_image_bytes(descriptor, 98, 5)
    finally:
        os.close(descriptor)
    with pytest.raises(RunError, match="cannot be read"):
        read_image_bytes(descriptor, 0, 1)


def test_short_reads_are_joined(monkeypatch, tmp_path):
    (tmp_path / "shard").write_bytes(bytes(range(100)))
    whole = os.pread
    monkeypatch.setattr(os, "pread", lambda descriptor, count, at: whole(descriptor, min(count, 3), at))
    descriptor = os.open(tmp_path / "shard", os.O_RDONLY)
    try:
        assert read_image_bytes(descriptor, 10, 8) == bytes(range(10, 18))
    finally:
        os.close(descriptor)
