"""Images at the edges through the whole of ``prepare``: kept byte for byte, or listed with the reason."""

import io
import struct
import tarfile
import zlib

import numpy as np
import pytest
from PIL import Image

import synthetic_sources as synthetic
from andscale.data import image_check
from andscale.data import prepare as prepare_module
from andscale.data.images import check_image, decode_rgb
from andscale.data.prepare import PrepareOptions, prepare
from andscale.data.shard_stream import stream_samples
from andscale.data.shards import load_catalogue
from andscale.errors import RunError

ALONE = PrepareOptions(num_workers=1)
PHOTO = synthetic.jpeg(synthetic.photograph(1, np.random.default_rng(1), (150, 130)))


def solid(file_format, size, mode="RGB"):
    buffer = io.BytesIO()
    Image.new(mode, size, 7 if mode in ("L", "1") else (200, 30, 40, 0)[: len(mode)]).save(buffer, file_format)
    return buffer.getvalue()


def cmyk(transform=None):
    """A CMYK JPEG: as Adobe's programs write it (inverted), with another colour transform in their mark (2: YCCK), or
    without the mark, which is plain CMYK.
    """
    data = solid("JPEG", (24, 16), "CMYK")
    at = data.index(b"\xff\xee")
    length = struct.unpack(">H", data[at + 2 : at + 4])[0]
    if transform is None:
        return data[:at] + data[at + 2 + length :]
    return data[: at + 1 + length] + bytes([transform]) + data[at + 2 + length :]


def png_that_says(width, height):
    """A PNG whose header claims a size; its checksum is right."""
    data = bytearray(solid("PNG", (4, 4), "L"))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def jpeg_that_says(width, height):
    """A JPEG whose frame header claims a size."""
    data = bytearray(PHOTO)
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


# name -> (bytes, suffix of the real format, (width, height))
GOOD = {
    "adobe cmyk.JPEG": (cmyk(0), "jpg", (24, 16)),
    "plain cmyk.JPEG": (cmyk(), "jpg", (24, 16)),
    "ycck.JPEG": (cmyk(2), "jpg", (24, 16)),
    "pixel.jpg": (solid("JPEG", (1, 1)), "jpg", (1, 1)),
    "pixel.png": (solid("PNG", (1, 1), "1"), "png", (1, 1)),
    "pixel.webp": (solid("WEBP", (1, 1)), "webp", (1, 1)),
    "pixel.bmp": (solid("BMP", (1, 1)), "bmp", (1, 1)),
    "wide.jpg": (solid("JPEG", (20_000, 3)), "jpg", (20_000, 3)),
    "wide.png": (solid("PNG", (20_000, 3)), "png", (20_000, 3)),
    "tall.jpg": (solid("JPEG", (3, 20_000)), "jpg", (3, 20_000)),
    "widest.jpg": (solid("JPEG", (65_500, 1)), "jpg", (65_500, 1)),
    "a png.JPEG": (solid("PNG", (9, 8)), "png", (9, 8)),
    "a jpeg.png": (solid("JPEG", (9, 8)), "jpg", (9, 8)),
    "no suffix": (PHOTO, "jpg", (150, 130)),
}
BAD = {
    "zero bytes.jpg": (b"", "empty file"),
    "text.jpg": (b"this is no image" * 20, "not a JPEG, PNG, WebP or BMP image"),
    "gif.jpg": (solid("GIF", (8, 8), "L"), "not a JPEG, PNG, WebP or BMP image"),
    "tiff.JPEG": (solid("TIFF", (8, 8)), "not a JPEG, PNG, WebP or BMP image"),
    "bomb.png": (png_that_says(20_000, 20_000), "decompression bomb"),
    "just too large.png": (png_that_says(20_000, 4_474), "20000x4474 pixels, allowed are 1 to 89,478,485"),
    "bomb.jpg": (jpeg_that_says(65_000, 65_000), "decompression bomb"),
    "no height.png": (png_that_says(4, 0), ""),
    "cut in the header.jpg": (PHOTO[:100], ""),
    "cut in half.jpg": (PHOTO[: len(PHOTO) // 2], "truncated"),
    "cut at the end.jpg": (PHOTO[:-40], "truncated"),
    "cut cmyk.jpg": (cmyk(0)[:-20], "truncated"),
    "cut in half.png": (GOOD["wide.png"][0][: len(GOOD["wide.png"][0]) // 2], ""),
    "cut.webp": (synthetic.encoded("RGB", "WEBP", (60, 60))[:-30], ""),
    "cut.bmp": (synthetic.encoded("RGB", "BMP", (60, 60))[:-30], ""),
    "cut wide.jpg": (GOOD["wide.jpg"][0][:-300], "truncated"),
}


def test_images_at_the_edges_are_kept_byte_for_byte(tmp_path):
    synthetic.write_files(tmp_path / "flat", {name: data for name, (data, _, _) in GOOD.items()})
    dataset = prepare("image-folder", tmp_path / "flat", tmp_path / "out", ALONE)
    sources = load_catalogue(dataset, "train").sources
    assert sorted(sources) == sorted(GOOD)
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        suffixes = [name.rpartition(".")[2] for name in tar.getnames()]
    for source, suffix, (_, data, _) in zip(sources, suffixes, stream_samples(dataset, "train"), strict=True):
        expected, expected_suffix, (width, height) = GOOD[source]
        assert (data, suffix) == (expected, expected_suffix), source
        assert decode_rgb(data).shape == (height, width, 3), source


def test_cmyk_of_adobe_is_not_inverted():
    image = Image.new("CMYK", (24, 16), (0, 255, 255, 0))  # red
    buffer = io.BytesIO()
    image.save(buffer, "JPEG")
    assert b"Adobe" in buffer.getvalue()
    red, green, blue = decode_rgb(buffer.getvalue())[8, 12]
    assert red > 240 and green < 15 and blue < 15


@pytest.mark.parametrize("layout", ["folder", "tars"])
def test_images_that_cannot_be_read_are_all_listed_or_left_out(tmp_path, layout):
    content = {f"n01440764_{200 + i}.JPEG": data for i, (data, _) in enumerate(BAD.values())}
    content |= {f"n01440764_{100 + i}.JPEG": data for i, (data, _, _) in enumerate(GOOD.values())}
    source, folder = imagenet_with(tmp_path / "raw", content, layout)
    with pytest.raises(RunError, match=f"{len(BAD)} of {len(BAD) + len(GOOD) + 4} images cannot be read"):
        prepare(source, folder, tmp_path / "out", ALONE)
    listed = (tmp_path / "out" / ".parts" / "unreadable.txt").read_text().splitlines()
    by_name = dict(line.removeprefix('"').split('": ', 1) for line in listed)
    for i, (name, (_, reason)) in enumerate(BAD.items()):
        assert reason in by_name[f"train/n01440764/n01440764_{200 + i}.JPEG"], name
    dataset = prepare(source, folder, tmp_path / "out", PrepareOptions(num_workers=1, skip_bad=True))
    kept = [data for _, data, _ in stream_samples(dataset, "train")]
    assert len(kept) == len(GOOD) + 2
    assert {data for data, _, _ in GOOD.values()} <= set(kept)


def deep_grey(largest):
    """A grey PNG of 16 bits."""
    buffer = io.BytesIO()
    Image.fromarray(np.array([[0, largest]], np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "is_dim"),
    [
        (deep_grey(4095), True),
        (deep_grey(32_767), True),
        (deep_grey(32_768), False),
        (deep_grey(0), False),  # black is black at every depth
        (solid("PNG", (4, 4), "L"), False),
        (PHOTO, False),
    ],
    ids=["12 bits", "15 bits", "16 bits", "black", "8 bits", "photograph"],
)
def test_grey_of_fewer_bits_than_its_file_holds_is_noticed(data, is_dim):
    assert check_image(data).is_dim == is_dim


def test_dim_images_are_counted_at_the_end_of_the_start_that_finishes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(image_check, "_IMAGES_PER_CHECK", 1)
    files = {"a.png": deep_grey(65_535), "b.png": deep_grey(4095), "c.png": deep_grey(4000), "d.png": b"x"}
    synthetic.write_files(tmp_path / "flat", files)
    options = PrepareOptions(num_workers=1, skip_bad=True)
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "_write_dataset", None)
        with pytest.raises(TypeError):
            prepare("image-folder", tmp_path / "flat", tmp_path / "out", options)
    assert "warning: " not in capsys.readouterr().err
    prepare("image-folder", tmp_path / "flat", tmp_path / "out", options)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(
        'warning: grey images of 16 bits without a value above 32,767: 2, for one "b.png": the upper'
    ), last


def imagenet_with(folder, content, layout):
    """The synthetic ImageNet with 2 classes of one image, and ``content`` in the first one."""
    if layout == "folder":
        synthetic.write_imagenet_folders(folder, 2, 1, 1, ".")
        synthetic.write_files(folder / "train" / "n01440764", content)
        return "imagenet", folder
    synthetic.write_imagenet_tars(folder, 2, 1, 1)
    classes = {}
    with tarfile.open(folder / "ILSVRC2012_img_train.tar") as tar:
        for member in tar:
            classes[member.name] = tar.extractfile(member).read()
    with tarfile.open(fileobj=io.BytesIO(classes["n01440764.tar"])) as tar:
        content = content | {m.name: tar.extractfile(m).read() for m in tar}
    classes["n01440764.tar"] = synthetic.write_tar(folder / "class.tar", content).read_bytes()
    (folder / "class.tar").unlink()
    synthetic.write_tar(folder / "ILSVRC2012_img_train.tar", classes)
    return "imagenet", folder


def test_an_archive_that_shrinks_while_it_is_prepared_is_named(tmp_path):
    from andscale.data.sources import open_source

    synthetic.write_imagenet_tars(tmp_path, 2, 1, 1)
    split = open_source("imagenet", tmp_path).splits["val"]
    path = tmp_path / "ILSVRC2012_img_val.tar"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(RunError, match=r"img_val.tar ends within it"):
        split.read(0)
