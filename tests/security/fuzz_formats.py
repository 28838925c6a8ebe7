"""Small valid files of every format that is read here, and the readers of each: what the fuzzer mutates and calls."""

import contextlib
import gzip
import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import andscale
import reference
from andscale.config import ModelConfig
from andscale.config_file import load_config
from andscale.data import images
from andscale.data.array_formats import CifarFiles, read_idx, read_svhn
from andscale.data.fine_grained import _list_archive
from andscale.data.prepare import PrepareOptions, prepare
from andscale.data.samples import SampleSource, Shards
from andscale.data.shard_stream import stream_samples
from andscale.data.shards import load_catalogue, open_dataset
from andscale.data.tar_archives import list_members
from andscale.errors import RunError
from andscale.indexing.faiss_index import INDEX_NAME, open_index, save
from andscale.indexing.index_building import build_index
from andscale.metrics import read_metrics
from andscale.store import artifacts
from andscale.store.features import gather_by_id, read_features, write_features
from andscale.store.files import hash_file
from andscale.store.foreign import read_foreign_features
from andscale.store.neighbourhoods import NeighbourhoodTable, read_table, write_table_file
from andscale.store.run_record import create_run, load_run
from andscale.training.backbones import build_backbone, save_model
from andscale.training.checkpoint import STATE_NAME, _load_state
from tiny_runs import digits_config

NUM, DIM = 40, 8


@dataclass(frozen=True)
class Format:
    """``path`` is mutated, then ``read()`` is called; a refusal must name ``named``, where that is not empty."""

    path: Path
    read: Callable[[], object]
    named: str = ""


def make(name: str, folder: Path) -> Format:
    """A valid file of the format below ``folder``; reading it succeeds."""
    folder.mkdir()
    return FORMATS[name](folder)


def _rows() -> np.ndarray:
    return reference.unit_rows(np.random.default_rng(1), NUM, DIM)


def _publish(folder, kind, write, rows=NUM, **figures):
    """An artefact of one file, which ``write(path)`` writes; returns the file."""
    with artifacts.publish(folder, kind=kind, provenance=artifacts.Provenance("c", {"a": "b"})) as draft:
        name = write(draft.staging)
        draft.add(name, rows)
        draft.figures.update(figures)
    return folder / name


def _resealed(path: Path) -> None:
    """Make the manifest beside a file fit it: a stranger's does."""
    manifest = path.parent / "manifest.json"
    record = json.loads(manifest.read_text())
    for file in record["files"]:
        if file["name"] == path.name:
            file.update(bytes=path.stat().st_size, blake3=hash_file(path))
    manifest.write_text(json.dumps(record))


def _manifest(folder):
    def write(staging):
        (staging / "a.txt").write_text("a")
        return "a.txt"

    _publish(folder / "x", "memory", write)
    path = folder / "x" / "manifest.json"
    return Format(path, lambda: artifacts.load_manifest(path.parent, "memory"), str(path.parent))


def _run_record(folder):
    class Digits:
        root, fingerprint = folder, "f"

    root = folder / "run"
    create_run(root, digits_config(Digits), folder, "f")
    return Format(root / "run.json", lambda: load_run(root), str(root))


def _config(folder):
    path = folder / "c.toml"
    path.write_text((Path(__file__).parents[2] / "configs" / "digits_demo.toml").read_text())
    return Format(path, lambda: load_config(path), str(path))


def _metrics(folder):
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps({"epoch": e, "loss": 1 / (e + 1), "time_s": 1.5}) + "\n" for e in range(6)))
    return Format(path, lambda: [record["epoch"] for record in read_metrics(path) if "epoch" in record])


def _features(folder):
    def write(staging):
        write_features(staging / "features-00000-of-00001.parquet", np.arange(NUM), _rows())
        return "features-00000-of-00001.parquet"

    path = _publish(folder / "memory", "memory", write)

    def read():
        _resealed(path)
        try:
            gather_by_id([path], NUM)
        finally:
            read_features(path.parent)

    return Format(path, read, "memory")


def _foreign(folder):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / "f.parquet"
    pq.write_table(pa.table({"sample_id": np.arange(NUM), "v": list(_rows())}), path, compression="zstd")
    return Format(path, lambda: read_foreign_features(path), str(path))


def _npy(folder):
    np.save(folder / "f.npy", _rows())
    return Format(folder / "f.npy", lambda: read_foreign_features(folder / "f.npy"), "f.npy")


def _neighbourhoods(folder):
    rng = np.random.default_rng(2)

    def write(staging):
        ids = (np.arange(NUM)[:, None] + [1, 2]) % NUM
        scores = np.tile(np.float32([0.9, 0.8]), (NUM, 1))
        entropies = rng.random(NUM).astype(np.float32)
        write_table_file(staging / "n.parquet", NeighbourhoodTable(ids, scores, entropies, rng.random(NUM) < 0.5))
        return "n.parquet"

    path = _publish(folder / "neighbourhoods", "neighbourhoods", write)

    def read():
        _resealed(path)
        read_table(path.parent)

    return Format(path, read, "neighbourhoods")


def _prepared(folder):
    from PIL import Image

    rng = np.random.default_rng(4)
    (folder / "in").mkdir()
    for number in range(6):
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(folder / "in" / f"{number}.png")
    return prepare("image-folder", folder / "in", folder / "out", PrepareOptions(num_workers=1))


def _dataset(folder):
    dataset = _prepared(folder)
    return Format(dataset.root / "dataset.json", lambda: open_dataset(dataset.root), "dataset.json")


def _catalogue(folder):
    dataset = _prepared(folder)
    path = dataset.root / "train.parquet"

    def read():
        record = dataset.splits["train"]
        file = replace(record.catalogue, bytes=path.stat().st_size, blake3=hash_file(path))
        load_catalogue(replace(dataset, splits={"train": replace(record, catalogue=file)}), "train")

    return Format(path, read, "train.parquet")


def _shard(folder):
    dataset = _prepared(folder)
    path = dataset.root / "train-000000.tar"
    catalogue = load_catalogue(dataset, "train")

    def read():
        source = SampleSource(Shards(catalogue), np.array([0, 6]), 64, None)
        try:
            source.decode_all((8, 8), "decode")
        finally:
            list(stream_samples(dataset, "train"))

    return Format(path, read, "out")


def _tar(folder):
    path = folder / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("a/b.jpg", "é" * 120 + ".jpg"):
            info = tarfile.TarInfo(name)
            info.size = 30
            tar.addfile(info, io.BytesIO(bytes(30)))
    return Format(path, lambda: list(list_members(path, str(path))), "a.tar")


def _unpacked():
    """Descriptors of files without a name that archives were unpacked into."""
    for number in range(3, 500):
        with contextlib.suppress(OSError):
            if "andscale-" in str(Path(f"/proc/self/fd/{number}").readlink()) or "(deleted)" in str(
                Path(f"/proc/self/fd/{number}").readlink()
            ):
                yield number


def _tar_gz(folder):
    plain = _tar(folder).path
    path = folder / "a.tgz"
    path.write_bytes(gzip.compress(plain.read_bytes()))

    def read():
        before = set(_unpacked())
        try:
            _list_archive(path)
        finally:  # kept open until the process ends, on purpose
            for number in set(_unpacked()) - before:
                os.close(number)

    return Format(path, read, "a.tgz")


def _idx(folder):
    path = folder / "x-idx3-ubyte"
    path.write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 4, 0, 0, 0, 4]) + bytes(range(32)))
    return Format(path, lambda: read_idx(path, 3), path.name)


def _idx_gz(folder):
    path = folder / "x-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(_idx(folder).path.read_bytes()))
    return Format(path, lambda: read_idx(path, 3), path.name)


def _cifar(folder):
    base = folder / "cifar-10-batches-py"
    base.mkdir()
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": ["a"]}, protocol=2))
    data = np.random.default_rng(1).integers(0, 255, (2, 3072), np.uint8)
    (base / "data_batch_1").write_bytes(pickle.dumps({"data": data, "labels": [0, 1], "f": ["a", "b"]}, protocol=2))
    files = CifarFiles(folder, "cifar-10-batches-py", "cifar-10-python.tar.gz")
    return Format(base / "data_batch_1", lambda: files.read_images("data_batch_1", "labels"), "data_batch_1")


def _mat(folder):
    from scipy.io import savemat

    path = folder / "train_32x32.mat"
    content = {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.array([[1], [2]], np.uint8)}
    savemat(path, content, do_compression=True)
    return Format(path, lambda: read_svhn(path), path.name)


def _mat_plain(folder):
    from scipy.io import savemat

    path = folder / "train_32x32.mat"
    rng = np.random.default_rng(1)
    cells = np.array([[np.array(["a"], object)], [np.array([{"b": 1.0}], object)]], object)
    savemat(path, {"c": cells, "X": rng.integers(0, 9, (32, 32, 3, 1), np.uint8), "y": np.array([[1]], np.uint8)})
    return Format(path, lambda: read_svhn(path), path.name)


def _checkpoint(folder):
    import torch

    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    network(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    path = folder / "epoch-0001" / STATE_NAME
    path.parent.mkdir()
    torch.save({"module": network.state_dict(), "optimizer": optimizer.state_dict(), "next_epoch": 1}, path)
    return Format(path, lambda: _load_state(path), STATE_NAME)


def _model(folder, name):
    config = ModelConfig(backbone="small_resnet", feature_dim=16)
    save_model(folder, build_backbone(config, 0), config, 8)
    return Format(folder / name, lambda: andscale.load_model(folder), name)


def _index(folder, kind):
    def write(staging):
        save(build_index(reference.unit_rows(np.random.default_rng(1), 300, DIM), kind, seed=1), staging / INDEX_NAME)
        return INDEX_NAME

    path = _publish(folder / "index", "index", write, 300, index_kind=kind, dim=DIM)

    def read():
        _resealed(path)
        index, _ = open_index(path.parent)
        index.search(_rows(), 3)

    return Format(path, read, INDEX_NAME)


def _image(folder, form):
    from PIL import Image

    path = folder / f"x.{form}"
    pixels = np.random.default_rng(1).integers(0, 255, (24, 20, 3), np.uint8)
    Image.fromarray(pixels).save(path, form)

    def read():
        data = path.read_bytes()
        header, reasons = None, []
        for decode in (images.check_image, images.decode_rgb, lambda d: images.decode_rgb(d, 4)):
            try:
                found = decode(data)
                if header is None and isinstance(found, images.ImageHeader):
                    header = found
            except RunError as error:
                reasons.append(error)
        if header and not reasons:
            assert images.image_size(data) == images.decode_rgb(data).shape[:2]
        if reasons:
            raise reasons[0]

    return Format(path, read)


FORMATS: dict[str, Callable[[Path], Format]] = {
    "manifest": _manifest, "run record": _run_record, "config": _config, "metrics": _metrics, "dataset": _dataset,
    "features": _features, "foreign": _foreign, "npy": _npy, "neighbourhoods": _neighbourhoods,
    "catalogue": _catalogue, "shard": _shard, "tar": _tar, "tar.gz": _tar_gz, "idx": _idx, "idx.gz": _idx_gz,
    "cifar": _cifar, "mat": _mat, "mat plain": _mat_plain, "checkpoint": _checkpoint,
    "model config": lambda folder: _model(folder, "config.json"),
    "model weights": lambda folder: _model(folder, "model.safetensors"),
    **{f"index {k}": (lambda folder, kind=k: _index(folder, kind)) for k in ("flat", "ivf_flat", "ivf_pq", "hnsw")},
    **{f"image {f}": (lambda folder, form=f: _image(folder, form)) for f in ("jpeg", "png", "webp", "bmp")},
}  # fmt: skip
