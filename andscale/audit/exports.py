"""A neighbourhood table for the tools where people look on."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from andscale.audit.subject import Subject
from andscale.data.images import read_header
from andscale.data.samples import Shards
from andscale.errors import RunError, UsageError
from andscale.metrics import Progress
from andscale.store.files import check_writable, errors_name, fsync_path, write_file
from andscale.store.plain_parquet import write_plain_table


def export(subject: Subject, request: str) -> str:
    """Write what ``FORMAT:PATH`` asks for; returns one line that says what was written and how it is opened.

    atlas: Parquet for Embedding Atlas, ``neighbours`` with ids and distances a row. cleanlab: the kNN graph as a
    compressed sparse row matrix of distances, ``.npz`` as scipy reads it. fiftyone: a folder with ``samples.json`` and
    the images. parquet: one row a sample, ids and similarities as lists. A distance is 1 - similarity.

    Raises:
        UsageError: no such format; PATH exists; fiftyone without images on this machine.
    """
    name, colon, place = request.partition(":")
    writers: dict[str, Callable[[Subject, Path], str]] = {
        "atlas": _write_atlas,
        "cleanlab": _write_cleanlab,
        "fiftyone": _write_fiftyone,
        "parquet": _write_parquet,
    }
    if name not in writers or not colon or not place:
        raise UsageError(f"--export {request}: expected FORMAT:PATH with one of {', '.join(writers)}")
    path = Path(place)
    if path.exists():
        raise UsageError(f"{path} exists already: name another, or remove it")
    check_writable(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    return writers[name](subject, path)


def sample_columns(subject: Subject) -> dict[str, Any]:
    """sample_id, key, source, label, class, entropy, entropy_stderr, is_anchor, where they are known; (N,) each."""
    table, labels, count = subject.table, subject.audit_labels, len(subject.table)
    columns: dict[str, Any] = {"sample_id": np.arange(count)}
    if subject.catalogue is not None:
        columns |= {"key": subject.catalogue.keys, "source": subject.catalogue.sources}
    if labels is not None:
        names = {label: subject.class_name(label) for label in np.unique(labels).tolist()}
        columns["label"] = labels
        columns["class"] = [names[label] if label >= 0 else None for label in labels.tolist()]
    columns["entropy"] = table.entropies
    if table.entropy_stderr is not None:
        columns["entropy_stderr"] = table.entropy_stderr
    return columns | {"is_anchor": table.is_anchor}


def distances(subject: Subject) -> np.ndarray:
    """(N, K) float32, 1 - similarity, not below 0: rounding makes the similarity of duplicates a little more than 1."""
    found: np.ndarray = np.maximum(np.float32(1) - subject.table.similarities, np.float32(0))
    return found


def _write_atlas(subject: Subject, path: Path) -> str:
    neighbours = {"ids": subject.table.neighbour_ids, "distances": distances(subject)}
    write_plain_table(path, sample_columns(subject), {"neighbours": neighbours})
    return f"wrote {path}: embedding-atlas {path} --neighbors neighbours"


def _write_parquet(subject: Subject, path: Path) -> str:
    table = subject.table
    lists = {"sample_id": table.neighbour_ids, "similarity": table.similarities}
    write_plain_table(path, sample_columns(subject), {"neighbours": lists})
    return f"wrote {path}: {len(table):,} rows"


def _write_cleanlab(subject: Subject, path: Path) -> str:
    count, width = subject.table.neighbour_ids.shape
    parts: dict[str, Any] = {
        "indices": subject.table.neighbour_ids.ravel(),
        "indptr": np.arange(0, (count + 1) * width, width),
        "format": np.array(b"csr"),
        "shape": np.array([count, count]),
        "data": distances(subject).ravel().astype(np.float64),
    }
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with errors_name(path), temporary.open("wb") as file:
            np.savez(file, **parts)
        fsync_path(temporary)
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    return f"wrote {path}: Datalab.find_issues(knn_graph=scipy.sparse.load_npz(...))"


def _write_fiftyone(subject: Subject, folder: Path) -> str:
    if subject.catalogue is None or subject.dataset is None or subject.dataset.url:
        raise UsageError("FiftyOne shows image files: name a prepared data set on this machine with --dataset")
    columns, table = sample_columns(subject), subject.table
    staging = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shards, samples = Shards(subject.catalogue), []
    try:
        (staging / "data").mkdir(parents=True)
        with Progress("images for FiftyOne", len(table), "images") as progress:
            for sample_id in range(len(table)):
                data = shards.take(sample_id)
                name = f"data/{sample_id:09d}{_suffix(data, sample_id)}"
                with errors_name(staging / name):
                    (staging / name).write_bytes(data)
                samples.append(_fiftyone_sample(name, sample_id, columns, subject))
                progress.advance()
        write_file(staging / "samples.json", json.dumps({"samples": samples}).encode())
        write_file(staging / "metadata.json", json.dumps({"name": str(subject.root), "media_type": "image"}).encode())
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return f"wrote {folder}: {len(table):,} images and samples.json"


def _fiftyone_sample(name: str, sample_id: int, columns: dict[str, Any], subject: Subject) -> dict[str, Any]:
    table = subject.table
    sample: dict[str, Any] = {
        "filepath": name,
        "tags": ["anchor" if table.is_anchor[sample_id] else "instance"],
        "metadata": None,
        "_media_type": "image",
        "sample_id": sample_id,
        "source": columns["source"][sample_id],
        "entropy": float(table.entropies[sample_id]),
        "neighbour_ids": table.neighbour_ids[sample_id].tolist(),
        "similarities": [float(s) for s in table.similarities[sample_id]],
    }
    if table.entropy_stderr is not None:
        sample["entropy_stderr"] = float(table.entropy_stderr[sample_id])
    if columns.get("class") is not None and columns["class"][sample_id] is not None:
        sample["ground_truth"] = {"_cls": "Classification", "tags": [], "label": columns["class"][sample_id]}
    return sample


def _suffix(data: bytes, sample_id: int) -> str:
    try:
        return f".{read_header(data).suffix}"
    except RunError as error:
        raise RunError(f"sample {sample_id} cannot be exported: {error}") from None
