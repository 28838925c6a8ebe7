"""A run to serve a million samples from: a real index, and a table of neighbours that are made up."""

import io
import json
import os
import shutil
import tarfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from andscale.config_file import build_config
from andscale.data.shard_writer import catalogue_schema
from andscale.data.shards import DATASET_FORMAT, DATASET_NAME, DATASET_VERSION, ShardRecord, open_dataset
from andscale.indexing.faiss_index import INDEX_NAME, save
from andscale.indexing.faiss_index import KIND as INDEX_KIND
from andscale.indexing.index_building import build_index
from andscale.indexing.rebuild import write_table
from andscale.store.artifacts import Provenance, publish, seal
from andscale.store.files import hash_file, write_file
from andscale.store.neighbourhoods import NeighbourhoodTable
from andscale.store.run_layout import RunLayout
from andscale.store.run_record import create_run
from benchmarks.bench import DIM
from benchmarks.data import clustered_unit_vectors

NUM_NEIGHBOURS = 10
_NUM_CLASSES = 1000
_PREPARED = "prepared"


def make_run(folder: Path, num_samples: int, kind: str, num_rounds: int) -> RunLayout:
    """The run in ``folder``, made once: round 1 is served, the others wait in ``folder/waiting`` (``bring``)."""
    layout = RunLayout(folder / "run")
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        dataset = open_dataset(_make_dataset(folder / _PREPARED, num_samples))
        config = build_config({"data": {"dataset": str(dataset.root)}, "model": {"feature_dim": DIM}}, "benchmark")
        create_run(layout.root, config, dataset.root, dataset.fingerprint)
        index = _make_index(folder / "index", num_samples, kind, Provenance(config.digest()))
        for number in range(1, num_rounds + 1):
            _make_round(folder / "waiting", number, index, num_samples)
        (folder / "complete").touch()
    shutil.rmtree(layout.rounds, ignore_errors=True)
    bring(layout, 1)
    return layout


def bring(layout: RunLayout, number: int) -> None:
    """Let a round that waits appear in the run: hard links, the manifests last, as a job's rename does."""
    source, target = layout.root.parent / "waiting" / f"{number:02d}", layout.round(number).root
    target.mkdir(parents=True)
    for part in ("index", "neighbourhoods"):
        staging = target / f".{part}.partial-benchmark"
        shutil.copytree(source / part, staging, copy_function=os.link)
        staging.rename(target / part)


def _make_dataset(out: Path, num_samples: int) -> Path:
    """A catalogue of so many samples that are all the one image of the shard."""
    out.mkdir(parents=True)
    picture = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save(picture, "PNG")
    shard = out / "train-000000.tar"
    with tarfile.open(shard, "w") as tar:
        member = tarfile.TarInfo("000000000.png")
        member.size = len(picture.getvalue())
        tar.addfile(member, io.BytesIO(picture.getvalue()))
    ids = np.arange(num_samples)
    columns = {
        "sample_id": ids,
        "key": [f"{i:09d}" for i in range(num_samples)],
        "shard": [shard.name] * num_samples,
        "offset": np.full(num_samples, tarfile.BLOCKSIZE),
        "length": np.full(num_samples, member.size),
        "label": (ids % _NUM_CLASSES).astype(np.int32),
        "source": [f"train/class_{i % _NUM_CLASSES}/{i}.png" for i in range(num_samples)],
    }
    record = ShardRecord(shard.name, num_samples, shard.stat().st_size, hash_file(shard))
    splits = {"train": _split(out, "train", columns, [record]), "val": _split(out, "val", {k: [] for k in columns}, [])}
    described = {"format": DATASET_FORMAT, "format_version": DATASET_VERSION, "name": "benchmark", "splits": splits}
    classes = [f"class {i}" for i in range(_NUM_CLASSES)]
    write_file(out / DATASET_NAME, json.dumps(described | {"classes": classes}).encode())
    return out


def _split(out: Path, split: str, columns: dict, shards: list[ShardRecord]) -> dict:
    path = out / f"{split}.parquet"
    schema = catalogue_schema()
    table = pa.table({name: columns[name] for name in schema.names}, schema=schema)
    pq.write_table(table, path, compression="zstd", write_page_checksum=True)
    return {
        "num_samples": len(table),
        "catalogue": asdict(seal(path, len(table))),
        "shards": [asdict(shard) for shard in shards],
        "image_sizes": {"min_width": 32, "max_width": 32, "min_height": 32, "max_height": 32} if shards else None,
    }


def _make_index(folder: Path, num_samples: int, kind: str, provenance: Provenance) -> tuple[Path, Provenance, dict]:
    index = build_index(clustered_unit_vectors(num_samples, DIM), kind)
    folder.mkdir(parents=True)
    save(index, folder / INDEX_NAME)
    return folder / INDEX_NAME, provenance, {"index_kind": kind, "dim": DIM}


def _make_round(waiting: Path, number: int, index: tuple[Path, Provenance, dict], num_samples: int) -> None:
    """A round with neighbours that are drawn, not found: the service reads them alike."""
    path, provenance, figures = index
    started, folder = time.monotonic(), RunLayout(waiting).root / f"{number:02d}"
    rng = np.random.default_rng(number)
    stride = num_samples // (2 * NUM_NEIGHBOURS)
    first = rng.integers(1, num_samples - NUM_NEIGHBOURS * stride, num_samples)
    steps = first[:, None] + stride * np.arange(NUM_NEIGHBOURS)
    entropies = rng.gamma(4.0, 1.0, num_samples).astype(np.float32)
    table = NeighbourhoodTable(
        (np.arange(num_samples)[:, None] + steps) % num_samples,
        -np.sort(-rng.random((num_samples, NUM_NEIGHBOURS), np.float32), axis=1),
        entropies,
        entropies <= np.quantile(entropies, number / 10),
    )
    write_table(folder / "neighbourhoods", table, provenance, started, {})
    with publish(folder / "index", kind=INDEX_KIND, provenance=provenance) as draft:
        os.link(path, draft.path(INDEX_NAME))
        draft.add(INDEX_NAME, rows=num_samples)
        draft.figures.update(figures)
