import errno
import resource
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from andscale.config_data import AugmentConfig, DataConfig
from andscale.data import samples
from andscale.data.order import WINDOW_CHUNKS, chunk_cuts, chunked_order, spans
from andscale.data.reader import SplitReader, batch_bounds, epoch_order, rank_counts
from andscale.data.shards import load_catalogue, open_dataset
from andscale.distributed import World
from andscale.errors import RunError, UsageError

CPU = torch.device("cpu")
AUGMENT = AugmentConfig()
N = 143  # 11 x 13: not divisible by the batch sizes, world sizes or numbers of workers below


def _reader(digits, in_memory=True, workers=0, **options):
    config = DataConfig(
        dataset="x", image_size=8, in_memory_bytes=1 << 30 if in_memory else 0, num_workers=workers, **options
    )
    return SplitReader(digits, "train", config, CPU, max_samples=N)


@given(st.integers(2, 500), st.integers(2, 64))
def test_batches_cover_an_epoch_once_and_differ_by_one_sample_at_most(n, size):
    bounds = batch_bounds(n, size)
    assert [i for start, stop in bounds for i in range(start, stop)] == list(range(n))
    sizes = [stop - start for start, stop in bounds]
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(2, 64), st.integers(1, 32))
def test_shares_of_the_ranks_add_up_and_none_is_empty_when_the_batch_is_large_enough(batch, ranks):
    counts = rank_counts(batch, ranks)
    assert sum(counts) == batch
    assert max(counts) - min(counts) <= 1
    assert batch < ranks or min(counts) > 0


def test_the_order_is_a_permutation_that_depends_on_seed_round_and_epoch_only():
    order = epoch_order(N, 1, 2, 3)
    assert sorted(order) == list(range(N))
    np.testing.assert_array_equal(order, epoch_order(N, 1, 2, 3))
    for other in ((0, 2, 3), (1, 0, 3), (1, 2, 0)):
        assert (epoch_order(N, *other) != order).any()


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("in_memory", [True, False])
def test_every_sample_is_read_exactly_once_an_epoch_in_the_same_order(digits, world_size, workers, in_memory):
    if in_memory and workers:
        pytest.skip("images in memory are read without processes")
    reader = _reader(digits, in_memory, workers)
    assert reader.is_in_memory == in_memory
    per_rank = [list(reader.epoch(World(rank, world_size), AUGMENT, 16, (0, 1, 2))) for rank in range(world_size)]
    steps = [torch.cat([b.sample_ids for b in batches]).tolist() for batches in zip(*per_rank, strict=True)]
    assert [i for ids in steps for i in ids] == epoch_order(N, 0, 1, 2).tolist()
    for batches in per_rank:
        assert [b.step for b in batches] == list(range(9))
        assert all(b.images.shape == (len(b.sample_ids), 3, 8, 8) for b in batches)


@pytest.mark.parametrize("options", [{}, {"shuffle": "chunked", "chunk_samples": 11}])
@pytest.mark.parametrize("in_memory", [True, False])
def test_an_epoch_can_begin_at_any_step_on_another_number_of_ranks(digits, in_memory, options):
    reader = _reader(digits, in_memory, **options)
    whole = list(reader.epoch(World(), AUGMENT, 16, (0, 1, 2)))
    for first_step in (1, 8):
        rest = [list(reader.epoch(World(rank, 2), AUGMENT, 16, (0, 1, 2), first_step)) for rank in (0, 1)]
        assert [b.step for b in rest[0]] == list(range(first_step, 9))
        for batch, *parts in zip(whole[first_step:], *rest, strict=True):
            assert torch.cat([part.sample_ids for part in parts]).equal(batch.sample_ids)
            torch.testing.assert_close(torch.cat([part.images for part in parts]), batch.images)


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_sample_looks_the_same_on_any_number_of_ranks(digits, in_memory):
    reader = _reader(digits, in_memory)

    def images(world_size):
        batches = [
            b for rank in range(world_size) for b in reader.epoch(World(rank, world_size), AUGMENT, 16, (0, 0, 0))
        ]
        ids = torch.cat([b.sample_ids for b in batches])
        return torch.cat([b.images for b in batches])[torch.argsort(ids)]

    one = images(1)
    torch.testing.assert_close(images(2), one)
    torch.testing.assert_close(images(3), one)


def test_memory_and_shards_give_the_same_images(digits):
    batches = [list(_reader(digits, held).epoch(World(), AUGMENT, 16, (0, 0, 0))) for held in (True, False)]
    for held, read in zip(*batches, strict=True):
        assert torch.equal(held.images, read.images)
    held, read = (torch.cat(list(_reader(digits, m).in_order(50))) for m in (True, False))
    assert torch.equal(held, read)


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_devices_tensor_operations_give_what_the_loops_of_the_cpu_give(digits, in_memory):
    """Crops travel to devices as whole intensities: half a step of 255, in units of the smallest std, then jittered."""
    on_cpu, on_device = _reader(digits, in_memory), _reader(digits, in_memory)
    on_device._finish_on_device = True
    bound = 1e-4 if in_memory else 1.4 * 0.5 / 255 / 0.224
    pairs = zip(*(r.epoch(World(), AUGMENT, 16, (0, 0, 0)) for r in (on_cpu, on_device)), strict=True)
    differences = torch.cat([(cpu.images - device.images).abs().flatten() for cpu, device in pairs])
    # hues of nearly gray pixels turn on a hair's breadth: they are few
    assert differences.mean() < bound / 2
    assert (differences > bound).float().mean() < (1e-4 if in_memory else 0.02)
    for cpu, device in zip(on_cpu.in_order(50), on_device.in_order(50), strict=True):
        assert (cpu - device).abs().max() < bound


def test_batches_lie_in_channels_last_memory(digits):
    for in_memory in (True, False):
        batch = next(_reader(digits, in_memory).epoch(World(), AUGMENT, 16, (0, 0, 0)))
        assert batch.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_chunks_are_read_whole_and_each_sample_once(digits, world_size, monkeypatch):
    """One read a chunk and rank, of neighbouring bytes, where a full shuffle reads once a sample."""
    reads = []
    read = samples.read_image_bytes
    monkeypatch.setattr(samples, "read_image_bytes", lambda d, at, n: (reads.append(n), read(d, at, n))[1])
    reader = _reader(digits, False, workers=2, shuffle="chunked", chunk_samples=11)
    per_rank = [list(reader.epoch(World(rank, world_size), AUGMENT, 16, (0, 1, 2))) for rank in range(world_size)]
    steps = [torch.cat([b.sample_ids for b in batches]).tolist() for batches in zip(*per_rank, strict=True)]
    order = chunked_order(chunk_cuts(N, 11), WINDOW_CHUNKS, (0, 1, 2)).tolist()
    assert [i for ids in steps for i in ids] == order
    share = {(rank, i // 11) for rank, batches in enumerate(per_rank) for b in batches for i in b.sample_ids.tolist()}
    assert len(reads) == len(share) <= 13 * world_size
    lengths = reader.catalogue.lengths
    if world_size == 1:
        assert min(reads) >= 11 * int(lengths.min())
    images = torch.cat([b.images for batches in per_rank for b in batches])
    ids = torch.cat([b.sample_ids for batches in per_rank for b in batches])
    alone = _reader(digits, False, shuffle="chunked", chunk_samples=11)
    expected = list(alone.epoch(World(), AUGMENT, 16, (0, 1, 2)))
    assert torch.equal(
        images[torch.argsort(ids)],
        torch.cat([b.images for b in expected])[torch.argsort(torch.cat([b.sample_ids for b in expected]))],
    )


def test_chunks_hold_the_bytes_that_lie_at_the_offsets(digits):
    ids = np.random.default_rng(0).permutation(N)
    chunked = _reader(digits, False, shuffle="chunked", chunk_samples=11).source.plan(ids)
    by_offset = _reader(digits, False).source.plan(ids)
    chunked.prepare(N)
    for sample_id in ids.tolist():
        assert chunked.take(sample_id) == by_offset.take(sample_id)


def test_a_chunk_is_let_go_when_its_last_sample_was_taken():
    loaded = []

    def load(ids):
        loaded.append(ids.tolist())
        return {i: bytes([i]) for i in ids.tolist()}

    order = np.array([0, 5, 1, 2, 9, 6, 7, 8])
    plan = samples.ChunksAhead(order, np.array([0, 3, 6, 10]), load)
    plan.prepare(len(order))
    for sample_id in order.tolist():
        assert plan.take(sample_id) == bytes([sample_id])
    assert sorted(loaded) == [[0, 1, 2], [5], [6, 7, 8, 9]]
    assert not plan._loaded
    plan.close()


def test_an_epoch_that_is_left_early_leaves_nothing_to_wait_for(digits):
    reader = _reader(digits, False, workers=1, shuffle="chunked", chunk_samples=11)
    batches = reader.epoch(World(), AUGMENT, 16, (0, 0, 0))
    first = next(batches)
    batches.close()
    again = next(reader.epoch(World(), AUGMENT, 16, (0, 0, 0)))
    assert torch.equal(first.images, again.images)


def test_threads_are_those_of_the_ranks_share_of_the_cores(digits, monkeypatch):
    from andscale import distributed as module

    monkeypatch.setattr(module, "num_usable_cores", lambda: 16)
    for name in ("SLURM_CPUS_PER_TASK", "SUBMITIT_EXECUTOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert _reader(digits, workers=None)._num_threads == 4
    assert _reader(digits, workers=0)._num_threads == 0
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "7")
    assert _reader(digits, workers=None)._num_threads == 4  # of torchrun, in a shell that Slurm gave seven cores
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    assert _reader(digits, workers=None)._num_threads == 4
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    assert _reader(digits, workers=None)._num_threads == 7


def test_epochs_are_augmented_differently(digits):
    reader = _reader(digits)
    first, second = (
        torch.cat([b.images for b in sorted(reader.epoch(World(), AUGMENT, N, (0, 0, e)), key=lambda b: b.step)])
        for e in (0, 1)
    )
    assert (first - second).abs().mean() > 0.1


def test_labels_follow_their_images(digits):
    reader = _reader(digits)
    from sklearn.datasets import load_digits

    raw = load_digits()
    np.testing.assert_array_equal(reader.catalogue.labels, raw.target[:N])
    images = torch.cat(list(reader.in_order(50)))
    expected = torch.from_numpy(raw.images[:N]).float() * 15 / 255
    torch.testing.assert_close(images[:, 0] * 0.229 + 0.485, expected, atol=1e-5, rtol=0)


def test_a_split_that_is_not_there_is_named(digits):
    with pytest.raises(UsageError):
        SplitReader(digits, "test", DataConfig(dataset="x"), CPU)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("in_memory", [True, False])
def test_a_damaged_shard_is_named_in_one_line(digits, tmp_path, in_memory, workers):
    shutil.copytree(digits.root, tmp_path / "copy")
    copy = open_dataset(tmp_path / "copy")
    path = tmp_path / "copy" / "train-000000.tar"
    data = bytearray(path.read_bytes())
    offset = int(load_catalogue(copy, "train").offsets[7])
    data[offset : offset + 16] = bytes(16)  # the image's header
    path.write_bytes(data)
    with pytest.raises(RunError) as caught:
        list(_reader(copy, in_memory, workers).epoch(World(), AUGMENT, 16, (0, 0, 0)))
    assert "train-000000.tar" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert ("does not have the hash of its record" if in_memory else "sample 7: ") in str(caught.value)


def test_a_missing_shard_is_named_before_anything_is_read(digits, tmp_path):
    shutil.copytree(digits.root, tmp_path / "copy")
    (tmp_path / "copy" / "train-000000.tar").unlink()
    with pytest.raises(RunError, match=r"train-000000.tar is missing"):
        _reader(open_dataset(tmp_path / "copy"), in_memory=False)


def test_neighbouring_samples_are_read_at_once_and_wide_gaps_are_left_out():
    kib = 1024
    starts = np.array([900, 0, 100, 720, 1000], np.int64) * kib
    lengths = np.array([100, 90, 101, 70, 10], np.int64) * kib
    # in their order: 10, 519, 110 and 0 KiB between them
    assert [part.tolist() for part in spans(starts, lengths)] == [[1, 2], [3, 0, 4]]
    assert [part.tolist() for part in spans(starts[:1], lengths[:1])] == [[0]]


def test_opening_shards_takes_the_whole_limit_of_open_files(digits):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        samples.Shards(load_catalogue(digits, "val"))
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (min(hard, samples._MOST_FILES), hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("soft", [2 << 20, resource.RLIM_INFINITY])
def test_a_limit_of_open_files_is_never_lowered(digits, monkeypatch, soft):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, soft))
    monkeypatch.setattr(resource, "setrlimit", None)
    samples.Shards(load_catalogue(digits, "val"))


def test_too_many_open_shards_are_not_taken_for_damage(digits, monkeypatch):
    catalogue = load_catalogue(digits, "val")
    source = samples.SampleSource(samples.Shards(catalogue), np.array([0, 1]), 1, None)

    def full(path, flags):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(samples.os, "open", full)
    with pytest.raises(RunError, match=r"val-000000\.tar cannot be opened: .* raise it with ulimit -n") as caught:
        source.decode_all((8, 8), "decode")
    assert "--verify" not in str(caught.value)
