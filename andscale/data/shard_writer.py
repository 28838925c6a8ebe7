"""The steps of ``prepare`` that write: one shard and its part of the catalogue; the parts joined.

A job carries the samples that it is about, so a process needs nothing but the job, whether it was forked or spawned.
"""

import io
import json
import os
import secrets
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from andscale.data.image_check import refuse_disk_failure
from andscale.data.images import ImageHeader, read_header
from andscale.data.raw import RawSplit
from andscale.data.shards import CATALOGUE_KIND, ShardRecord
from andscale.errors import RunError
from andscale.store.artifacts import seal
from andscale.store.files import fsync_path, parse_json, write_file
from andscale.store.parquet import ROW_GROUP_ROWS, SCHEMA_VERSION, open_table

PARTS_NAME = ".parts"
_SHARD_KEY = b"andscale.shard"


@dataclass(frozen=True)
class ShardJob:
    """Shard ``number`` of ``split``: ``samples`` have the ids ``first_id``, ``first_id + 1``, ..."""

    out: Path
    split: str
    number: int
    first_id: int
    samples: RawSplit

    @property
    def name(self) -> str:
        """The shard's file name."""
        return f"{self.split}-{self.number:06d}.tar"

    @property
    def part(self) -> Path:
        """The shard's part of the catalogue; it is written last, so with it the shard is finished."""
        return self.out / PARTS_NAME / f"{self.split}-{self.number:06d}.parquet"


@dataclass(frozen=True)
class ShardResult:
    """A finished shard.

    Attributes:
        record: what ``dataset.json`` will say of it.
        sizes: (min_width, max_width, min_height, max_height), pixels.
        was_kept: whether an earlier start had written it.
    """

    record: ShardRecord
    sizes: tuple[int, int, int, int]
    was_kept: bool = False


def catalogue_schema(metadata: dict[bytes, bytes] | None = None) -> Any:
    """The Arrow schema of catalogues and their parts."""
    import pyarrow as pa

    columns = {
        "sample_id": pa.int64(),
        "key": pa.string(),
        "shard": pa.string(),
        "offset": pa.int64(),
        "length": pa.int64(),
        "label": pa.int32(),
        "source": pa.string(),
    }
    general = {b"andscale.kind": CATALOGUE_KIND.encode(), b"andscale.schema_version": SCHEMA_VERSION}
    fields = [pa.field(name, kind, nullable=False) for name, kind in columns.items()]
    return pa.schema(fields, metadata=general | (metadata or {}))


def write_shard(job: ShardJob) -> ShardResult:
    """Write a shard under a hidden name, rename it, then write its part; a shard finished before is kept.

    Raises:
        RunError: an image changed since it was checked, or the disk is full.
    """
    kept = _finished(job)
    if kept is not None:
        return kept
    temporary = job.out / f".{job.name}.tmp-{secrets.token_hex(8)}"
    try:
        columns, result = _write_tar(job, temporary)
        temporary.rename(job.out / job.name)
        fsync_path(job.out)
        _write_part(job, columns, result)
    except OSError as error:
        raise RunError(
            f"{job.out / job.name} cannot be written ({error.strerror or error}): mend that and start again, finished "
            "shards are kept"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
    return result


def _finished(job: ShardJob) -> ShardResult | None:
    """The result of an earlier start, if the shard still has the recorded size and hash."""
    shard = job.out / job.name
    if not job.part.is_file() or not shard.is_file():
        return None
    try:
        with open_table(job.part, ("sample_id",), CATALOGUE_KIND) as file:
            metadata, rows = file.schema_arrow.metadata, file.metadata.num_rows
        recorded = parse_json(metadata[_SHARD_KEY])
        result = ShardResult(ShardRecord(**recorded["record"]), tuple(recorded["sizes"]), was_kept=True)
    except (RunError, KeyError, TypeError, ValueError):
        return None
    record = result.record
    if (record.name, record.rows, rows) != (job.name, len(job.samples), len(job.samples)):
        return None
    is_whole = shard.stat().st_size == record.bytes and _hash_alone(shard) == record.blake3
    return result if is_whole else None


def _hash_alone(path: Path) -> str:
    """``hash_file`` in this thread only: the hasher's thread pool does not survive a fork."""
    from blake3 import blake3

    return blake3().update_mmap(path).hexdigest()


class _HashingFile:
    """A file opened for writing that hashes what passes."""

    def __init__(self, path: Path):
        from blake3 import blake3

        self.file = path.open("wb")
        self.hasher = blake3()
        self.num_bytes = 0

    def write(self, data: bytes) -> int:
        self.hasher.update(data)
        self.num_bytes += len(data)
        return self.file.write(data)

    def tell(self) -> int:
        return self.num_bytes

    def close(self) -> None:
        """Flush to the disk."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()


def _write_tar(job: ShardJob, path: Path) -> tuple[dict[str, list[Any]], ShardResult]:
    """Write the archive; returns the catalogue's columns. Equal samples give equal bytes."""
    columns: dict[str, list[Any]] = {name: [] for name in catalogue_schema().names}
    headers = []
    stream = _HashingFile(path)
    try:
        with tarfile.TarFile(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:  # type: ignore[arg-type]
            for position in range(len(job.samples)):
                data, header = _read_sample(job, position)
                headers.append(header)
                key, label = f"{job.first_id + position:09d}", int(job.samples.labels[position])
                offset = _add_member(tar, f"{key}.{header.suffix}", data)
                if label >= 0:
                    _add_member(tar, f"{key}.cls", str(label).encode())
                source = job.samples.describe(position)
                row = (job.first_id + position, key, job.name, offset, len(data), label, source)
                for values, value in zip(columns.values(), row, strict=True):
                    values.append(value)
    finally:
        stream.close()
    widths, heights = [h.width for h in headers], [h.height for h in headers]
    record = ShardRecord(job.name, len(headers), stream.num_bytes, stream.hasher.hexdigest())
    return columns, ShardResult(record, (min(widths), max(widths), min(heights), max(heights)))


def _read_sample(job: ShardJob, position: int) -> tuple[bytes, ImageHeader]:
    try:
        data = job.samples.read(position)
        return data, read_header(data)
    except (OSError, RunError) as error:
        if isinstance(error, OSError):
            refuse_disk_failure(error, job.samples, position)
        where = json.dumps(job.samples.describe(position), ensure_ascii=False)
        raise RunError(f"{where} can no longer be read ({error}): it changed while it was prepared") from None


def _add_member(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Add a regular file without time or owner; returns the offset of its first byte."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o644
    # USTAR puts one block before the data of a member with a short name
    offset = tar.offset + tarfile.BLOCKSIZE
    tar.addfile(member, io.BytesIO(data))
    return offset


def _write_part(job: ShardJob, columns: dict[str, list[Any]], result: ShardResult) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = json.dumps({"record": asdict(result.record), "sizes": result.sizes}).encode()
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns, schema=catalogue_schema({_SHARD_KEY: content})), buffer)
    write_file(job.part, buffer.getvalue())


def finish_split(out: Path, split: str, results: list[ShardResult]) -> dict[str, Any]:
    """Join the parts into the split's catalogue; returns what ``dataset.json`` says of the split."""
    import pyarrow.parquet as pq

    path = out / f"{split}.parquet"
    temporary = out / f".{path.name}.tmp-{secrets.token_hex(8)}"
    parts = [out / PARTS_NAME / Path(result.record.name).with_suffix(".parquet") for result in results]
    try:
        with pq.ParquetWriter(temporary, catalogue_schema(), compression="zstd", write_page_checksum=True) as writer:
            for table in _row_groups(parts):
                writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
        fsync_path(temporary)
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    num_samples = sum(result.record.rows for result in results)
    return {
        "num_samples": num_samples,
        "catalogue": asdict(seal(path, num_samples)),
        "shards": [asdict(result.record) for result in results],
        "image_sizes": _image_sizes(results),
    }


def _row_groups(parts: list[Path]) -> Iterator[Any]:
    """The parts' rows as tables of whole row groups; only the last one may be short."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    metadata = catalogue_schema().metadata
    waiting: list[Any] = []
    for path in parts:
        waiting.append(pq.read_table(path).replace_schema_metadata(metadata))
        num_rows = sum(len(table) for table in waiting)
        if num_rows >= ROW_GROUP_ROWS:
            joined = pa.concat_tables(waiting)
            whole = num_rows - num_rows % ROW_GROUP_ROWS
            yield joined.slice(0, whole)
            waiting = [joined.slice(whole)]
    if waiting:
        yield pa.concat_tables(waiting)


def _image_sizes(results: list[ShardResult]) -> dict[str, int] | None:
    """Smallest and largest extents of a split's images, pixels; None when it has none."""
    if not results:
        return None
    min_widths, max_widths, min_heights, max_heights = zip(*(result.sizes for result in results), strict=True)
    return {
        "min_width": min(min_widths),
        "max_width": max(max_widths),
        "min_height": min(min_heights),
        "max_height": max(max_heights),
    }
