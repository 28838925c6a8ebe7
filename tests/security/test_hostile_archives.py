"""Archives, gzip data and .mat files that were made to harm: refused by name, within bounds of memory and time."""

import bz2
import gzip
import io
import os
import struct
import tarfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from andscale.data import images, unpacking
from andscale.data.array_formats import load_mat, read_idx, try_mat
from andscale.data.image_folder import open_image_folder
from andscale.data.prepare import PrepareOptions, prepare
from andscale.data.raw import MAX_IMAGE_BYTES
from andscale.data.shard_stream import stream_samples
from andscale.data.sources import open_source
from andscale.data.tar_archives import list_members
from andscale.errors import RunError
from andscale.store import rehearsal


def member(name, kind=tarfile.REGTYPE, size=0, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, link
    return info


def tar_of(path, *members, mode="w", data=b""):
    with tarfile.open(path, mode, format=tarfile.GNU_FORMAT) as tar:
        for info in members:
            tar.addfile(info, io.BytesIO(data or bytes(info.size)))
    return path


def header_that_claims(name, kind, size):
    info = member(name, kind)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


HOSTILE_MEMBERS = {
    "outside": (member("../x.jpg"), "leads outside"),
    "absolute": (member("/etc/x.jpg"), "leads outside"),
    "symlink": (member("x.jpg", tarfile.SYMTYPE, link="/etc/passwd"), "not a plain file"),
    "hard link": (member("x.jpg", tarfile.LNKTYPE, link="/etc/passwd"), "not a plain file"),
    "device": (member("x.jpg", tarfile.CHRTYPE), "not a plain file"),
    "block device": (member("x.jpg", tarfile.BLKTYPE), "not a plain file"),
    "fifo": (member("x.jpg", tarfile.FIFOTYPE), "not a plain file"),
    "long key": (member("k" * 300 + ".jpg"), "longer than 255"),
}


@pytest.mark.parametrize(("info", "words"), HOSTILE_MEMBERS.values(), ids=HOSTILE_MEMBERS)
def test_a_member_that_is_no_plain_file_in_its_place_is_refused(tmp_path, info, words):
    path = tar_of(tmp_path / "a.tar", info)
    with pytest.raises(RunError, match=words) as error:
        list(list_members(path, str(path)))
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 700


def test_a_sparse_member_of_terabytes_is_refused(tmp_path):
    data = bytearray(header_that_claims("x.jpg", tarfile.GNUTYPE_SPARSE, 512))
    data[483:495] = b"%011o\0" % ((1 << 33) - 1)  # its real size
    data[148:156] = b"%06o\0 " % (sum(data[:148]) + sum(data[156:512]) + 8 * 32)
    (tmp_path / "a.tar").write_bytes(bytes(data) + bytes(512 * 3))
    with pytest.raises(RunError, match="not a plain file"):
        list(list_members(tmp_path / "a.tar", "a.tar"))


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_an_extended_header_that_claims_terabytes_takes_no_memory(tmp_path, kind):
    path = tmp_path / "a.tar"
    path.write_bytes(header_that_claims("x", kind, 1 << 44) + bytes(2048))
    with pytest.raises(RunError, match=r"not a whole tar archive: a header of \d+ bytes"):
        list(list_members(path, str(path)))


def test_a_member_that_claims_terabytes_is_refused(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(header_that_claims("x.jpg", tarfile.REGTYPE, 1 << 44) + bytes(2048))
    with pytest.raises(RunError, match="the archive ends within it"):
        list(list_members(path, str(path)))


def gzip_bomb(path, num_bytes):
    with gzip.open(path, "wb", compresslevel=9) as file:
        for _ in range(num_bytes >> 20):
            file.write(bytes(1 << 20))
    return path


@pytest.fixture
def _small_bounds(monkeypatch):
    """As if 64 MiB were 1 MiB: the same rule, sooner."""
    monkeypatch.setattr(unpacking, "_FREE_BYTES", 1 << 20)


@pytest.mark.usefixtures("_small_bounds")
def test_gzip_data_that_unpack_to_a_thousand_times_their_size_are_refused(tmp_path):
    bomb = gzip_bomb(tmp_path / "train-images-idx3-ubyte.gz", 8 << 20)
    with pytest.raises(RunError, match=r"train-images-idx3-ubyte.gz is refused: it unpacks to more than"):
        read_idx(bomb, 3)
    archive = gzip_bomb(tmp_path / "CUB_200_2011.tgz", 8 << 20)
    with pytest.raises(RunError, match=r"CUB_200_2011.tgz is refused: it unpacks to more than"):
        open_source("cub200", archive.parent)
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(bomb.read_bytes())
    with pytest.raises(RunError, match=r"cifar-10-python.tar.gz is refused: it unpacks to more than"):
        open_source("cifar10", tmp_path)


def test_bzip2_is_not_unpacked_at_all(tmp_path):
    (tmp_path / "CUB_200_2011.tgz").write_bytes(bz2.compress(bytes(1 << 20)))
    with pytest.raises(RunError, match="not a whole tar archive"):
        open_source("cub200", tmp_path)


def test_an_idx_header_that_claims_more_than_there_is_takes_no_memory(tmp_path):
    path = tmp_path / "x-idx3-ubyte"
    path.write_bytes(bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 2**32 - 1))
    with pytest.raises(RunError, match="is damaged: 0 bytes follow"):
        read_idx(path, 3)


def mat_element(kind, data):
    return struct.pack("<II", kind, len(data)) + data


def mat_file(path, body):
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<HH", 0x0100, 0x4D49) + body)
    return path


def cell(content):
    head = mat_element(6, struct.pack("<II", 1, 0)) + mat_element(5, struct.pack("<ii", 1, 1)) + mat_element(1, b"")
    return mat_element(14, head + content)


def test_cells_nested_without_end_crash_a_child_at_most(tmp_path):
    body = b""
    for _ in range(3000):
        body = cell(body)
    named = (
        mat_element(6, struct.pack("<II", 1, 0)) + mat_element(5, struct.pack("<ii", 1, 1)) + mat_element(1, b"X" * 8)
    )
    path = mat_file(tmp_path / "train_32x32.mat", mat_element(15, zlib.compress(mat_element(14, named + body * 1))))
    with pytest.raises(RunError, match=r"train_32x32\.mat"):
        load_mat("svhn", str(path), path, "XXXXXXXX")


def test_a_mat_reader_that_crashes_is_one_line(tmp_path, monkeypatch):
    path = mat_file(tmp_path / "train_32x32.mat", b"")
    with pytest.raises(RunError, match=r"train_32x32\.mat is refused: its reader crashes on it \(SIGABRT\)"):
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
        rehearsal.rehearse("hostile_reader:crash", path)
    assert try_mat(str(path), "X") is None


def test_a_reader_that_hangs_ends_within_its_bound(tmp_path, monkeypatch):
    path = mat_file(tmp_path / "x.mat", b"")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setattr(rehearsal, "_LEAST_TIMEOUT_S", 1.0)
    with pytest.raises(RunError, match=r"x\.mat is refused: reading it takes more than 1 s"):
        rehearsal.rehearse("hostile_reader:hang", path)


def test_a_reader_that_takes_too_much_memory_ends_within_its_bound(tmp_path, monkeypatch):
    path = mat_file(tmp_path / "x.mat", b"")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    with pytest.raises(RunError, match=r"x\.mat is refused: "):
        rehearsal.rehearse("hostile_reader:fill", path, room_bytes=1 << 30)


def test_a_progressive_jpeg_whose_scans_would_take_minutes_is_refused(monkeypatch):
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(buffer, "JPEG", progressive=True)
    good = buffer.getvalue()
    scan = good[good.rindex(b"\xff\xda") : -2]
    bad = good[:-2] + scan * 1000 + good[-2:]
    monkeypatch.setattr(images, "_MAX_SCANNED_PIXELS", 64 * 64 * 500)  # as if it had 93 million pixels
    for decode in (images.check_image, images.decode_rgb, images.image_size):
        decode(good)
        with pytest.raises(RunError, match=r"10\d\d scans of 64x64 pixels, which is taken for a decompression bomb"):
            decode(bad)


def test_a_shard_with_a_hostile_member_is_refused_before_webdataset_sees_it(tmp_path, digits):
    record = digits.splits["val"]
    for info, words in [*HOSTILE_MEMBERS.values(), (member("x/y.exe"), "no sample of ours")]:
        path = tar_of(tmp_path / "val-000000.tar", info)
        shard = replace(record.shards[0], name=path.name)
        hostile = replace(digits, root=tmp_path, splits={"val": replace(record, shards=(shard,))})
        with pytest.raises(RunError, match=rf"val-000000\.tar.*{words}"):
            list(stream_samples(hostile, "val"))


def test_duplicate_keys_in_a_shard_are_refused(tmp_path, digits):
    record = digits.splits["val"]
    path = tar_of(tmp_path / "val-000000.tar", member("000000000.png"), member("000000000.png"))
    shard = replace(record.shards[0], name=path.name)
    hostile = replace(digits, root=tmp_path, splits={"val": replace(record, shards=(shard,))})
    with pytest.raises(RunError, match="it is there twice"):
        list(stream_samples(hostile, "val"))


def test_a_file_that_claims_to_be_an_image_of_terabytes_is_not_read(tmp_path):
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(MAX_IMAGE_BYTES + 1)
    with pytest.raises(RunError, match="which no image has"):
        open_image_folder(tmp_path).splits["train"].read(0)


def test_pipes_and_devices_among_images_are_refused(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"x\.png.*neither a file nor a folder"):
        open_image_folder(tmp_path)


def test_a_png_with_a_text_that_unpacks_to_megabytes_is_left_out(tmp_path):
    from PIL import Image

    (tmp_path / "in").mkdir()
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(buffer, "PNG")
    good = buffer.getvalue()
    text = b"Comment\0\0" + zlib.compress(bytes(100 << 20), 9)
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    (tmp_path / "in" / "bad.png").write_bytes(good[:33] + chunk + good[33:])
    (tmp_path / "in" / "good.png").write_bytes(good)
    with pytest.raises(RunError, match="1 of 2 images cannot be read"):
        prepare("image-folder", tmp_path / "in", tmp_path / "out", PrepareOptions(num_workers=1))
