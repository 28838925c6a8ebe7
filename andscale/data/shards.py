"""Prepared data sets: WebDataset shards and their catalogue, opened, verified and read.

OUT/dataset.json            written last: it is what "prepared" means
OUT/train.parquet           the catalogue: where in which shard each image lies
OUT/train-000000.tar ...    NNNNNNNNN.jpg and NNNNNNNNN.cls of samples in the order of their ids
OUT/val.parquet, OUT/val-000000.tar ...
"""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from andscale.data.raw import MAX_IMAGE_BYTES
from andscale.data.remote import fetch_if_other, fetch_record
from andscale.errors import RunError, UsageError
from andscale.metrics import Progress
from andscale.spelling import spelt
from andscale.store.artifacts import FileRecord, verify_file
from andscale.store.files import hash_bytes, parse_json, read_record_bytes
from andscale.store.parquet import check_ids, column_to_numpy, open_table, read_columns

DATASET_NAME = "dataset.json"
DATASET_FORMAT = "andscale.dataset"
DATASET_VERSION = 1
CATALOGUE_KIND = "catalogue"
SPLITS = ("train", "val")
_HASH = re.compile(r"[0-9a-f]{64}")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_NUM_HASHING_THREADS = 4
_NUMBERS, _TEXTS = ("sample_id", "offset", "length", "label"), ("key", "shard", "source")
_MAX_COUNT = 1 << 62
_MAX_SIDE = 1 << 20


@dataclass(frozen=True)
class ShardRecord:
    """One shard; ``rows`` counts samples."""

    name: str
    rows: int
    bytes: int
    blake3: str


@dataclass(frozen=True)
class SplitRecord:
    """One split; ``uniform_size`` is (height, width) when all its images share one size."""

    num_samples: int
    shards: tuple[ShardRecord, ...]
    catalogue: FileRecord
    uniform_size: tuple[int, int] | None


@dataclass(frozen=True)
class PreparedDataset:
    """A prepared data set.

    Attributes:
        root: its folder; of a remote one, where its record and catalogues are kept on this machine.
        name: the source that it was made from.
        classes: names by class number; empty when there are no labels.
        splits: ``train`` and ``val``; ``val`` may be empty.
        fingerprint: BLAKE3 of ``dataset.json``'s content. Where the raw files were found, and whether they were what
            was published, is left out of it, so the same images, prepared alike, have the same fingerprint everywhere.
        url: where its shards are fetched from; empty when they lie in ``root``.
    """

    root: Path
    name: str
    classes: tuple[str, ...]
    splits: dict[str, SplitRecord]
    fingerprint: str
    url: str = ""


@dataclass(frozen=True, eq=False)
class Catalogue:
    """Where each image of a split lies, by sample id.

    Attributes:
        shards: paths; of a remote data set, where they would lie beside the catalogue.
        shard_numbers: (N,) int32, positions in ``shards``.
        offsets: (N,) int64, of the image's first byte in its shard.
        lengths: (N,) int64, bytes.
        labels: (N,) int32, -1 = none.
        keys: N WebDataset keys.
        sources: N descriptions of where the images came from.
    """

    shards: tuple[Path, ...]
    shard_numbers: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    keys: list[str]
    sources: list[str]


def open_dataset(place: Path | str) -> PreparedDataset:
    """Read and check ``dataset.json``; shards and catalogues are looked at when they are used.

    Args:
        place: a folder, or a URL as a string, from which the record is fetched anew.

    Raises:
        UsageError: ``place`` is not a prepared data set.
        RunError: its record is damaged, newer than this program, or names files outside the folder; a server fails.
    """
    root, url = (place, "") if isinstance(place, Path) else fetch_record(place, DATASET_NAME)
    path = root / DATASET_NAME
    record = read_record(root)
    if record is None:
        raise UsageError(f"{root} is not a prepared data set: make it with {spelt('prepare')}")
    try:
        splits = {split: _parse_split(path, record["splits"][split]) for split in SPLITS}
        content = {k: v for k, v in record.items() if k not in ("obtained_from", "differences_from_published")}
        fingerprint = hash_bytes(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())
        classes = record["classes"]
        if type(classes) is not list or not all(type(name) is str for name in classes):
            raise ValueError("classes")
        return PreparedDataset(root, str(record["name"]), tuple(classes), splits, fingerprint, url)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{path} is damaged ({type(error).__name__}: {error}): prepare the data set again") from None


def read_record(root: Path) -> dict[str, Any] | None:
    """The content of ``dataset.json``, its format and version checked; None when there is none."""
    path = root / DATASET_NAME
    try:
        record = parse_json(read_record_bytes(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        raise RunError(f"{path} is damaged: it is not JSON, or not a record's size") from None
    if not isinstance(record, dict) or record.get("format") != DATASET_FORMAT:
        raise RunError(f"{path} is not a record of andscale: {root} was prepared by another program")
    if record.get("format_version") != DATASET_VERSION:
        raise RunError(
            f"{path} has format version {record.get('format_version')}, this andscale reads {DATASET_VERSION}: "
            "use the andscale that wrote it, or prepare the data set again"
        )
    return record


def verify_dataset(root: Path) -> PreparedDataset:
    """Check size and BLAKE3 of every shard and catalogue.

    Raises:
        UsageError: ``root`` is not a prepared data set.
        RunError: the first bad file, and how many are bad.
    """
    dataset = open_dataset(root)
    files = [f for split in dataset.splits.values() for f in (split.catalogue, *split.shards)]

    def complaint(file: FileRecord | ShardRecord) -> str | None:
        try:
            verify_file(root / file.name, file.bytes, file.blake3)
        except RunError as error:
            return str(error)
        return None

    complaints = []
    # threads: hashing and reading release the interpreter
    with Progress("verify", len(files), "files") as progress, ThreadPoolExecutor(_NUM_HASHING_THREADS) as pool:
        for text in pool.map(complaint, files):
            complaints += [] if text is None else [text]
            progress.advance()
    if complaints:
        raise RunError(f"{complaints[0]} ({len(complaints)} of {len(files)} files of {root} are bad)")
    return dataset


def load_catalogue(
    dataset: PreparedDataset, split: str, max_samples: int | None = None, *, texts: bool = True
) -> Catalogue:
    """The catalogue of a split, its hash and its every row checked, in the order of sample ids.

    Args:
        dataset: the prepared data set.
        split: ``train`` or ``val``.
        max_samples: the first so many samples only; None: all.
        texts: False leaves ``keys`` and ``sources`` empty, which are most of a catalogue's memory (some 170 bytes a
            sample) and nothing to a rank that trains.

    Raises:
        RunError: the file is damaged; ids that are not 0..N-1, each once; an image that lies outside its shard.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    record = split_record(dataset, split)
    path = dataset.root / record.catalogue.name
    if dataset.url:
        fetch_if_other(dataset.url, path, record.catalogue.bytes, record.catalogue.blake3)
    verify_file(path, record.catalogue.bytes, record.catalogue.blake3)
    with open_table(path, (*_NUMBERS, *_TEXTS), CATALOGUE_KIND) as file:
        wanted = [*_NUMBERS, *(_TEXTS if texts else ("shard",))]
        table = read_columns(path, file, wanted)
    for name in wanted:
        kind = table.schema.field(name).type
        if not (pa.types.is_integer(kind) if name in _NUMBERS else pa.types.is_string(kind)):
            raise RunError(f"{path}: column {name!r} is of type {kind}, which no catalogue of ours has")

    def numbers(column: Any, name: str, dtype: type[np.generic]) -> np.ndarray:
        return column_to_numpy(path, name, column.combine_chunks()).astype(dtype, copy=False)

    ids = numbers(table["sample_id"], "sample_id", np.int64)
    check_ids(path, ids, record.num_samples)
    if (np.diff(ids) < 0).any():
        table = table.take(pa.array(np.argsort(ids)))
    names = pa.array([shard.name for shard in record.shards], pa.string())
    arrays = {
        "shard_numbers": numbers(pc.index_in(table["shard"], value_set=names), "shard", np.int32),
        "offsets": numbers(table["offset"], "offset", np.int64),
        "lengths": numbers(table["length"], "length", np.int64),
        "labels": numbers(table["label"], "label", np.int32),
    }
    _check_rows(path, arrays, record, len(dataset.classes))
    return Catalogue(
        shards=tuple(dataset.root / shard.name for shard in record.shards),
        keys=table["key"].slice(0, max_samples).to_pylist() if texts else [],
        sources=table["source"].slice(0, max_samples).to_pylist() if texts else [],
        **{name: values[:max_samples] for name, values in arrays.items()},
    )


def split_record(dataset: PreparedDataset, split: str) -> SplitRecord:
    """The record of a split; UsageError when there is none of that name."""
    if split not in dataset.splits:
        raise UsageError(f"no split {split!r}: choose one of {', '.join(dataset.splits)}")
    return dataset.splits[split]


def _parse_split(path: Path, record: dict[str, Any]) -> SplitRecord:
    shards = tuple(ShardRecord(**shard) for shard in record["shards"])
    catalogue = FileRecord(**record["catalogue"])
    files: list[ShardRecord | FileRecord] = [*shards, catalogue]
    for file in files:
        if not _PLAIN_NAME.fullmatch(file.name):
            raise RunError(f"{path} names a file outside its folder: {file.name!r}")
        if not all(type(count) is int and 0 <= count <= _MAX_COUNT for count in (file.rows, file.bytes)):
            raise ValueError(f"rows or bytes of {file.name}")
        if type(file.blake3) is not str or not _HASH.fullmatch(file.blake3):
            raise ValueError(f"the hash of {file.name}")
    if len({file.name for file in files}) < len(files):
        raise ValueError("a file is named twice")
    num_samples = record["num_samples"]
    if type(num_samples) is not int:
        raise ValueError("num_samples")
    if not num_samples == catalogue.rows == sum(shard.rows for shard in shards):
        raise ValueError("the counts of samples differ")
    sizes = dict(record["image_sizes"] or {})
    if not all(type(side) is int and 0 < side <= _MAX_SIDE for side in sizes.values()):
        raise ValueError("image_sizes")
    is_uniform = bool(sizes) and (sizes["min_height"], sizes["min_width"]) == (sizes["max_height"], sizes["max_width"])
    uniform_size = (int(sizes["max_height"]), int(sizes["max_width"])) if is_uniform else None
    return SplitRecord(num_samples, shards, catalogue, uniform_size)


def _check_rows(path: Path, arrays: dict[str, np.ndarray], record: SplitRecord, num_classes: int) -> None:
    """Every image lies inside its shard, every label is a class number, as many rows a shard as recorded."""
    shard_bytes = np.array([shard.bytes for shard in record.shards], np.int64)
    ends, lengths = shard_bytes[arrays["shard_numbers"]], arrays["lengths"]
    # written as a difference: offset + length could overflow
    outside = (arrays["offsets"] < 0) | (lengths <= 0) | (arrays["offsets"] > ends - lengths)
    if outside.any():
        raise RunError(f"{path}: the image of sample {np.flatnonzero(outside)[0]} lies outside its shard")
    if lengths.max(initial=0) > MAX_IMAGE_BYTES:
        raise RunError(f"{path}: the image of sample {lengths.argmax()} has {lengths.max()} bytes, which no image has")
    wrong = (arrays["labels"] < -1) | (arrays["labels"] >= num_classes)
    if wrong.any():
        raise RunError(f"{path}: sample {np.flatnonzero(wrong)[0]} has a label outside 0..{num_classes - 1}")
    counts = np.bincount(arrays["shard_numbers"], minlength=len(record.shards))
    for shard, count in zip(record.shards, counts, strict=True):
        if count != shard.rows:
            raise RunError(f"{path} lists {count} images in {shard.name}, its record says {shard.rows}")
