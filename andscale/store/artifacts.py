"""Atomic publication of folders: data first, manifest last, one rename.

An artefact is a folder that is absent, or complete and verified. Its files are written into a hidden sibling
folder, flushed to the disk and hashed; ``manifest.json`` is written there last; one ``rename`` makes the folder
appear. A writer killed at any moment leaves nothing but the hidden folder, which the next writer removes (and a
writer that was thought dead fails when its hidden folder is gone, instead of publishing over its successor).
"""

import glob
import json
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from andscale.errors import RunError, UsageError
from andscale.store.files import (
    errors_name,
    fsync_path,
    hash_bytes,
    hash_file,
    parse_json,
    read_record_bytes,
    write_file,
)
from andscale.store.manifest_check import check_files
from andscale.store.provenance import source_commit

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True)
class FileRecord:
    """One file of an artefact; ``rows`` is None for files that have no rows."""

    name: str
    rows: int | None
    bytes: int
    blake3: str


@dataclass(frozen=True)
class Provenance:
    """What an artefact was made from.

    ``parents`` maps the name of every artefact that was read (``rounds/01/memory``) to its manifest's digest.
    """

    config_hash: str
    parents: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """The content of ``manifest.json``.

    ``digest`` names the content: BLAKE3 of kind, files, config hash and parents. It is not stored, and it does not
    depend on when or how fast the artefact was made, so the same artefact made again has the same digest.
    """

    kind: str
    files: tuple[FileRecord, ...]
    provenance: Provenance
    figures: Mapping[str, Any]
    seconds: float
    created: str
    commit: str | None
    digest: str

    @property
    def num_rows(self) -> int:
        """Rows over all files."""
        return sum(f.rows or 0 for f in self.files)


def begin(folder: Path) -> Path:
    """Start writing the artefact ``folder``: returns a fresh hidden folder beside it, on the same file system.

    Hidden folders that earlier, killed writers of the same artefact left are removed.

    Raises:
        RunError: ``folder`` exists already, complete or not ours.
    """
    refuse_existing(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    for leftover in folder.parent.glob(f".{glob.escape(folder.name)}.partial-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    staging = folder.parent / f".{folder.name}.partial-{secrets.token_hex(8)}"
    staging.mkdir()
    return staging


def discard(folder: Path) -> None:
    """Remove a complete artefact; killed at any moment, it is there whole or absent, and the next writer clears up."""
    aside = folder.with_name(f".{folder.name}.partial-{secrets.token_hex(8)}")
    folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def refuse_existing(folder: Path) -> None:
    """Raise RunError when ``folder`` exists: an artefact is never written over."""
    if is_complete(folder):
        raise RunError(f"{folder} is complete already: remove it first if it is to be made again")
    if folder.exists():
        raise RunError(f"{folder} exists without a {MANIFEST_NAME}, so it is not ours to replace: move it away")


def seal(path: Path, rows: int | None = None) -> FileRecord:
    """Flush a finished file to the disk and record its size and hash; it is hashed while the disk is busy."""
    with ThreadPoolExecutor(1) as pool:
        flushed = pool.submit(fsync_path, path)
        digest = hash_file(path)
        flushed.result()
    return FileRecord(path.name, rows, path.stat().st_size, digest)


def commit(  # noqa: PLR0913 - the manifest's fields, once, by keyword
    staging: Path,
    folder: Path,
    *,
    kind: str,
    files: list[FileRecord],
    provenance: Provenance,
    started: float,
    figures: Mapping[str, Any] | None = None,
) -> Manifest:
    """Write the manifest into ``staging`` and rename it to ``folder``: from here on the artefact exists.

    Args:
        staging: the folder that ``begin`` returned.
        folder: the artefact's folder.
        kind: what it is, checked by readers (``memory``, ``neighbourhoods``, ...).
        files: records of every file, from ``seal``; files without a record are not part of the artefact.
        provenance: config hash and parents.
        started: ``time.monotonic()`` when the work began; the manifest's ``seconds`` follow from it.
        figures: what the job measured, JSON values.
    """
    record = {
        "format": "andscale.artifact",
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "files": [asdict(f) for f in sorted(files, key=lambda f: f.name)],
        "config_hash": provenance.config_hash,
        "parents": dict(provenance.parents),
        "figures": dict(figures or {}),
        "seconds": round(time.monotonic() - started, 3),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": source_commit(),
    }
    write_file(staging / MANIFEST_NAME, (json.dumps(record, indent=2, sort_keys=True) + "\n").encode())
    fsync_path(staging)
    refuse_existing(folder)
    staging.rename(folder)
    fsync_path(folder.parent)
    return load_manifest(folder, kind)


class Draft:
    """An artefact that one process is writing: ``path`` names a file in it, ``add`` seals it."""

    def __init__(self, staging: Path):
        self.staging = staging
        self.files: list[FileRecord] = []
        self.figures: dict[str, Any] = {}

    def path(self, name: str) -> Path:
        """Where to write the file ``name``."""
        return self.staging / name

    def add(self, name: str, rows: int | None = None) -> FileRecord:
        """Seal a written file and make it part of the artefact."""
        record = seal(self.path(name), rows)
        self.files.append(record)
        return record


@contextmanager
def publish(folder: Path, *, kind: str, provenance: Provenance, started: float | None = None) -> Iterator[Draft]:
    """Write an artefact from one process: the folder appears when the block ends, or not at all.

    Example:
        with publish(layout.evaluation, kind="evaluation", provenance=provenance) as draft:
            draft.path("evaluation.json").write_text(text)
            draft.add("evaluation.json")
    """
    started = time.monotonic() if started is None else started
    staging = begin(folder)
    draft = Draft(staging)
    try:
        with errors_name(folder):
            yield draft
        commit(
            staging,
            folder,
            kind=kind,
            files=draft.files,
            provenance=provenance,
            started=started,
            figures=draft.figures,
        )
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def is_complete(folder: Path) -> bool:
    """Whether the artefact has a manifest, which is what "done" means; contents are verified by its readers."""
    return (folder / MANIFEST_NAME).is_file()


def load_manifest(folder: Path, kind: str) -> Manifest:
    """Read an artefact's manifest.

    Raises:
        RunError: no manifest, not readable, or of another kind. UsageError: of a newer format.
    """
    path = folder / MANIFEST_NAME
    try:
        record = parse_json(read_record_bytes(path))
        if record["format"] != "andscale.artifact":
            raise KeyError("format")
        if record["format_version"] > FORMAT_VERSION:
            raise UsageError(f"{path} has format version {record['format_version']}: read it with the newer andscale")
        check_files(path, record["files"], MANIFEST_NAME)
        manifest = Manifest(
            kind=record["kind"],
            files=tuple(FileRecord(**f) for f in record["files"]),
            provenance=Provenance(record["config_hash"], dict(record["parents"])),
            figures=dict(record["figures"]),
            seconds=record["seconds"],
            created=record["created"],
            commit=record["commit"],
            digest=_digest(record),
        )
    except FileNotFoundError:
        raise RunError(f"{folder} has no {MANIFEST_NAME}: it is not complete") from None
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, UsageError):
            raise
        raise RunError(f"{path} is not a manifest of ours, or it is damaged") from None
    if manifest.kind != kind:
        raise RunError(f"{folder} holds {manifest.kind!r}, not {kind!r}")
    return manifest


def _digest(record: Mapping[str, Any]) -> str:
    content = {key: record[key] for key in ("kind", "files", "config_hash", "parents")}
    return hash_bytes(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())


def refuse_other_config(folder: Path, manifest: Manifest, config_hash: str) -> None:
    """Raise RunError when an artefact was made with another config than the run that wants to read it."""
    if manifest.provenance.config_hash != config_hash:
        raise RunError(f"{folder} was made with another config than this run has: it is not this run's")


def verify(folder: Path, kind: str) -> Manifest:
    """Read the manifest and check every file's size and hash.

    Raises:
        RunError: a file is missing, truncated or altered; the text names it.
    """
    manifest = load_manifest(folder, kind)
    for record in manifest.files:
        verify_file(folder / record.name, record.bytes, record.blake3)
    return manifest


def verify_file(path: Path, num_bytes: int, blake3: str) -> None:
    """Check one file against its recorded size and hash; raises RunError naming it."""
    check_size(path, num_bytes)
    if hash_file(path) != blake3:
        raise RunError(f"{path} does not have the hash of its record: it is damaged")


def check_size(path: Path, num_bytes: int) -> None:
    """Check that a file is there and has its recorded size; raises RunError naming it."""
    if not path.is_file():
        raise RunError(f"{path} is missing, but its record lists it")
    size = path.stat().st_size
    if size != num_bytes:
        raise RunError(f"{path} has {size} bytes, its record says {num_bytes}: it is damaged")
