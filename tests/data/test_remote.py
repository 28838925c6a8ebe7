"""Data sets at URLs: the same images as from the folder, each once; servers that fail, cut or change files."""

import errno
import os
import tempfile
import threading

import numpy as np
import pytest
import torch
from http_folder import serve

from andscale.config_data import AugmentConfig, DataConfig
from andscale.data import remote
from andscale.data.reader import SplitReader
from andscale.data.remote import ShardCache, check_url
from andscale.data.shards import load_catalogue, open_dataset
from andscale.distributed import World
from andscale.errors import RunError, UsageError

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def small_shards(tmp_path_factory):
    """Digits in 15 training shards of 100."""
    from andscale.data.prepare import PrepareOptions, prepare

    return prepare("digits", None, tmp_path_factory.mktemp("small") / "set", PrepareOptions(100, 1))


@pytest.fixture
def served(small_shards, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "_PAUSE_S", 0.01)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with serve(small_shards.root) as server:
        yield server


def reader(place, split="train", **options):
    config = DataConfig(dataset=str(place), image_size=8, in_memory_bytes=0, num_workers=2, **options)
    return SplitReader(open_dataset(place), split, config, CPU)


def epoch(some_reader, world_size=1, key=(0, 1, 2)):
    """Ids in the order of the whole epoch, and images by id."""
    per_rank = [list(some_reader.epoch(World(r, world_size), AugmentConfig(), 64, key)) for r in range(world_size)]
    order = [i for step in zip(*per_rank, strict=True) for batch in step for i in batch.sample_ids.tolist()]
    batches = [batch for batches in per_rank for batch in batches]
    ids = torch.cat([b.sample_ids for b in batches])
    return order, torch.cat([b.images for b in batches])[torch.argsort(ids)]


@pytest.mark.parametrize("shuffle", ["full", "chunked"])
def test_a_url_gives_what_the_folder_gives_and_each_shard_is_fetched_once(served, small_shards, shuffle, tmp_path):
    far = reader(served.url, cache_dir=str(tmp_path / "cache"), shuffle=shuffle)
    orders, images = zip(*(epoch(far, world_size) for world_size in (1, 2, 3)), strict=True)
    assert orders[0] == orders[1] == orders[2]
    assert sorted(orders[0]) == list(range(1437))
    assert torch.equal(images[0], images[1]) and torch.equal(images[0], images[2])
    if shuffle == "full":  # chunks of a URL are its shards, so the order is another one with chunks
        order, near = epoch(reader(small_shards.root))
        assert order == orders[0]
        assert torch.equal(near, images[0])
    assert torch.equal(torch.cat(list(far.in_order(100))), torch.cat(list(reader(small_shards.root).in_order(100))))
    assert {served.requests[f"train-{i:06d}.tar"] for i in range(15)} == {1}


def test_bytes_are_those_of_the_folder(served, small_shards):
    far, near = reader(served.url), reader(small_shards.root)
    ids = np.arange(1437)
    plans = far.source.plan(ids), near.source.plan(ids)
    for sample_id in ids.tolist():
        plans[0].prepare(sample_id)
        assert plans[0].take(sample_id) == plans[1].take(sample_id)


def test_images_that_fit_are_held_in_memory(served, small_shards):
    config = DataConfig(dataset="x", image_size=8)
    far, near = (SplitReader(open_dataset(p), "val", config, CPU) for p in (served.url, small_shards.root))
    assert far.is_in_memory
    assert torch.equal(torch.cat(list(far.in_order(100))), torch.cat(list(near.in_order(100))))


def test_a_cache_smaller_than_the_data_set_is_enough_for_chunks(served, small_shards, tmp_path):
    sizes = sorted((shard.bytes for shard in small_shards.splits["train"].shards), reverse=True)
    cache = tmp_path / "cache"
    options = {"cache_dir": str(cache), "shuffle": "chunked", "cache_bytes": sum(sizes[:13])}
    order, _ = epoch(reader(served.url, **options))
    assert sorted(order) == list(range(1437))
    assert sum(path.stat().st_size for path in cache.glob("*.tar")) <= sum(sizes[:13])
    assert {served.requests[f"train-{i:06d}.tar"] for i in range(15)} == {1}
    with pytest.raises(UsageError, match=r"data.cache_bytes = \d+ is too small"):
        reader(served.url, **(options | {"cache_bytes": sum(sizes[:13]) - 1}))
    with pytest.raises(UsageError, match="chunked needs less"):
        reader(served.url, **(options | {"shuffle": "full"}))


def test_removed_shards_are_read_on_by_those_who_have_them_open(served, small_shards, tmp_path):
    shards = small_shards.splits["train"].shards
    folder = tmp_path / "cache"
    folder.mkdir()
    cache = ShardCache(served.url, folder, max_bytes=shards[0].bytes)
    first = cache.open(shards[0].name, shards[0].bytes, shards[0].blake3)
    os.close(cache.open(shards[1].name, shards[1].bytes, shards[1].blake3))
    assert [path.stem for path in folder.glob("*.tar")] == [shards[1].blake3]
    assert os.pread(first, shards[0].bytes, 0) == (small_shards.root / shards[0].name).read_bytes()
    os.close(first)


def test_many_at_once_fetch_a_shard_once(served, small_shards, tmp_path):
    shard = small_shards.splits["train"].shards[0]
    caches = [ShardCache(served.url, tmp_path, 1 << 30) for _ in range(6)]
    descriptors = []
    threads = [
        threading.Thread(target=lambda c=c: descriptors.append(c.open(shard.name, shard.bytes, shard.blake3)))
        for c in caches
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(descriptors) == 6
    assert served.requests[shard.name] == 1
    for descriptor in descriptors:
        os.close(descriptor)


@pytest.mark.parametrize("fault", ["500", "cut", "short", "changed"])
def test_a_server_that_recovers_does_no_harm(served, fault):
    served.failing = {"dataset.json": ["500"], "train-000003.tar": [fault, fault]}
    order, _ = epoch(reader(served.url))
    assert sorted(order) == list(range(1437))
    assert served.requests["train-000003.tar"] == 3


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("500", "500"),
        ("cut", ""),
        ("short", "bytes, its record says"),
        ("changed", "does not have the hash of its record"),
    ],
)
def test_a_server_that_does_not_recover_is_one_line(served, small_shards, fault, text, tmp_path):
    served.failing = {"train-000003.tar": [fault] * 100}
    with pytest.raises(RunError) as caught:
        epoch(reader(served.url, cache_dir=str(tmp_path / "cache")))
    assert f"{served.url}/train-000003.tar cannot be fetched (4 attempts; the last:" in str(caught.value)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert served.requests["train-000003.tar"] == 4
    blake3 = small_shards.splits["train"].shards[3].blake3
    assert [path.name for path in (tmp_path / "cache").glob(f"*{blake3}*")] == [f".{blake3}.lock"]


def test_a_place_without_a_data_set_is_named(served):
    with pytest.raises(RunError, match=r"nothing/dataset.json is not there"):
        open_dataset(f"{served.url}/nothing")


def test_a_changed_catalogue_is_refused(served):
    served.failing = {"train.parquet": ["changed"] * 100}
    with pytest.raises(RunError, match=r"train.parquet cannot be fetched .* hash of its record"):
        load_catalogue(open_dataset(served.url), "train")


@pytest.mark.parametrize(
    "url",
    ["pipe:ls", "pipe://ls", "file:///etc", "http://a::file:///etc", "simplecache::http://a/b", "http://u:p@host/x",
     "http://host/x?y=1", "http://host/x#y", "http://host/../x", "http://host/x y", "http://host/x\nz", "ftp://host/x",
     "memory://x", "HTTP://host/x", "://x"],
)  # fmt: skip
def test_only_plain_urls_of_known_protocols_are_read(url):
    with pytest.raises(UsageError, match="not a plain URL"):
        check_url(url)


@pytest.mark.parametrize("url", ["https://host/a/b", "http://host:80/x_y-1.0", "s3://bucket/data", "gs://b"])
def test_plain_urls_are_taken(url):
    assert check_url(url + "/") == url


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "aiohttp", None)
    with pytest.raises(UsageError, match=r"pip install 'andscale\[remote\]'"):
        open_dataset("http://127.0.0.1:1/x")
    with pytest.raises(UsageError, match="pip install s3fs"):
        open_dataset("s3://bucket/x")


def test_a_cache_that_others_can_write_is_refused(tmp_path):
    (tmp_path / "open").mkdir(mode=0o777)
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(UsageError, match="alone to write"):
        remote.cache_folder(str(tmp_path / "open"))


def test_records_that_cannot_be_kept_name_the_setting_that_moves_them(served, small_shards, tmp_path, monkeypatch):
    """Records and catalogues lie below $TMPDIR; ``data.cache_dir`` moves shards alone."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"records cannot be kept in .*: set TMPDIR to a folder"):
        open_dataset(served.url)
    with pytest.raises(UsageError, match=r"shards cannot be kept in .*: set data.cache_dir"):
        remote.cache_folder(str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    far = open_dataset(served.url)

    def full(_, file, *__):
        file.write(b"{}")
        raise OSError(errno.ENOSPC, "No space left on device")  # as flushing does

    monkeypatch.setattr(remote, "_stream", full)
    for fetching in (lambda: open_dataset(served.url), lambda: load_catalogue(far, "train")):
        with pytest.raises(RunError, match="No space left on device: set TMPDIR to a folder"):
            fetching()
    shard = small_shards.splits["train"].shards[0]
    with pytest.raises(RunError, match=r"No space left on device: set data.cache_dir"):
        ShardCache(served.url, tmp_path, 1).open(shard.name, shard.bytes, shard.blake3)
