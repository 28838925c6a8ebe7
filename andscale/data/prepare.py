"""Raw data set -> prepared data set: WebDataset shards, catalogue, ``dataset.json``.

The work may be killed at any moment and started again: a finished shard has its part in ``OUT/.parts`` and is kept
if it still has the recorded hash; ``OUT/dataset.json`` is written last.
"""

import fcntl
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from andscale.data.image_check import check_all, say
from andscale.data.published import check_published
from andscale.data.raw import RawDataset, hold_out
from andscale.data.shard_writer import (
    PARTS_NAME,
    ShardJob,
    ShardResult,
    finish_split,
    write_shard,
)
from andscale.data.shards import (
    DATASET_FORMAT,
    DATASET_NAME,
    DATASET_VERSION,
    SPLITS,
    PreparedDataset,
    open_dataset,
    read_record,
)
from andscale.data.sources import open_source
from andscale.data.workers import no_more_than, num_cores, run_jobs
from andscale.errors import RunError, UsageError
from andscale.metrics import Progress
from andscale.store.files import MAX_RECORD_BYTES, check_writable, parse_json, read_record_bytes, write_file

_PLAN_NAME = "plan.json"
_UNREADABLE_NAME = "unreadable.txt"
_FILE = r"((train|val)(-\d{6,}\.tar|\.parquet)|dataset\.json)"
_OURS = re.compile(rf"{_FILE}|\.{_FILE}\.tmp-[0-9a-f]{{16}}")
_SHARD_BYTES, _OTHER_BYTES = 256, 2048
"""At most so much of ``dataset.json`` is of one shard, and of what never grows."""


@dataclass(frozen=True)
class PrepareOptions:
    """How a data set is prepared.

    Attributes:
        samples_per_shard: images a shard; the last one of a split may have fewer.
        num_workers: processes; None: one a core that this process may use.
        skip_bad: leave unreadable images out and record them, instead of stopping.
        hold_out: so many training images, evenly spaced, are ``val`` in the place of the published images; None: none.
    """

    samples_per_shard: int = 8192
    num_workers: int | None = None
    skip_bad: bool = False
    hold_out: int | None = None

    def __post_init__(self) -> None:
        for name in ("samples_per_shard", "num_workers", "hold_out"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} = {value}: it must be at least 1")


@dataclass(frozen=True)
class _Plan:
    """What is being prepared: frozen in ``.parts/plan.json`` when writing begins, compared when it goes on.

    Attributes:
        source, identity: of the raw data set.
        samples_per_shard: as asked.
        skipped: images that are left out: split, position in it, source, reason.
        warning: what is odd about the others, said when all is done; '' where nothing is.
    """

    source: str
    identity: str
    samples_per_shard: int
    skipped: list[dict[str, Any]]
    warning: str = ""


def prepare(source: str, folder: Path | None, out: Path, options: PrepareOptions | None = None) -> PreparedDataset:
    """Write the raw data set ``source`` as a prepared data set into ``out``; goes on where an earlier start stopped.

    Args:
        source: one of ``sources.SOURCES``.
        folder: where the raw files are; None: where ``open_source`` finds or downloads them.
        out: a folder that does not exist, is empty, or holds this work half done or done.
        options: shard size, processes, unreadable images.

    Raises:
        UsageError: ``out`` holds something else; nothing was touched.
        RunError: unreadable images (listed), damaged sources, a full disk.
    """
    options = options or PrepareOptions()
    _refuse_foreign(out)
    raw = open_source(source, folder)
    say(f"{raw.name}: {', '.join(f'{len(s):,} {n}' for n, s in raw.splits.items())} images from {raw.obtained_from}")
    found = check_published(raw, was_downloaded=folder is None)
    raw = raw if options.hold_out is None else hold_out(raw, options.hold_out)
    dataset = _already_prepared(out, raw, options)
    if dataset is None:
        check_writable(out)
        with _locked(out / PARTS_NAME):
            # again: the start that held the lock until now may have finished
            dataset = _already_prepared(out, raw, options) or _write(raw, out, options, found)
    # without the lock: NFS keeps a file that is open, and with it the folder; what stays is the next start's to remove
    shutil.rmtree(out / PARTS_NAME, ignore_errors=True)
    return dataset


def _write(raw: RawDataset, out: Path, options: PrepareOptions, found: list[str] | None) -> PreparedDataset:
    """Check, write and join everything that no earlier start has finished; ``found``: see ``_write_dataset``."""
    num_workers = options.num_workers or num_cores()
    plan = _load_plan(out, raw, options)
    if plan is None:
        listed_in = out / PARTS_NAME / _UNREADABLE_NAME
        skipped, warning = check_all(raw, listed_in, num_workers, skip_bad=options.skip_bad)
        plan = _Plan(raw.name, raw.identity, options.samples_per_shard, skipped, warning)
        _refuse_record_too_large(raw, plan, out, found)
        write_file(out / PARTS_NAME / _PLAN_NAME, _json(asdict(plan)))
    for leftover in out.glob(".*.tmp-*"):
        leftover.unlink()
    results = _write_shards(raw, plan, out, num_workers)
    splits = {split: finish_split(out, split, results[split]) for split in SPLITS}
    _write_dataset(out, raw, plan, splits, found)
    if plan.warning:
        say(f"warning: {plan.warning}")
    return open_dataset(out)


def _refuse_foreign(out: Path) -> None:
    """Raise UsageError unless ``out`` is absent, empty, or holds only what an earlier start wrote."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"{out} is not a folder: choose another place")
    names = sorted({path.name for path in out.iterdir()} - {PARTS_NAME})
    was_begun = (out / DATASET_NAME).is_file() or (out / PARTS_NAME / _PLAN_NAME).is_file()
    foreign = [name for name in names if not was_begun or not _OURS.fullmatch(name)]
    if foreign:
        raise UsageError(f"{out} holds {foreign[0]!r}, which is not of a data set prepared here: choose another folder")


def _already_prepared(out: Path, raw: RawDataset, options: PrepareOptions) -> PreparedDataset | None:
    record = read_record(out)
    if record is None:
        return None
    different = _differences({**record, "source": record.get("name")}, raw, options)
    if different:
        raise UsageError(
            f"{out} holds another prepared data set ({', '.join(different)}): remove it or choose another folder"
        )
    dataset = open_dataset(out)
    say(f"{out} is already prepared")
    return dataset


def _load_plan(out: Path, raw: RawDataset, options: PrepareOptions) -> _Plan | None:
    """The plan of an earlier start; UsageError when it prepared something else."""
    path = out / PARTS_NAME / _PLAN_NAME
    if not path.is_file():
        return None
    try:
        plan = _Plan(**parse_json(read_record_bytes(path)))
    except (ValueError, TypeError):
        raise RunError(f"{path} is damaged: remove {out} and start again") from None
    different = _differences(asdict(plan), raw, options)
    if different:
        raise UsageError(
            f"{out} holds the unfinished work of a start that differs ({', '.join(different)}): go on as it was begun, "
            f"or remove {out} to begin anew"
        )
    return plan


def _differences(begun: dict[str, Any], raw: RawDataset, options: PrepareOptions) -> list[str]:
    """What an earlier start recorded that is not as asked now."""
    wanted = {"source": raw.name, "identity": raw.identity, "samples_per_shard": options.samples_per_shard}
    different = [key for key, value in wanted.items() if begun.get(key) != value]
    return different + (["skip_bad"] if begun.get("skipped") and not options.skip_bad else [])


def _refuse_record_too_large(raw: RawDataset, plan: _Plan, out: Path, found: list[str] | None) -> None:
    """Raise UsageError where readers would not take the records: found out now, and not after hours of writing."""
    size = _largest_record(raw, plan, found)
    if size <= MAX_RECORD_BYTES:
        return
    text = f"dataset.json would have up to {size:,} bytes, more than the {MAX_RECORD_BYTES:,} that are read: "
    num_shards = _num_shards(raw, plan)
    if num_shards * _SHARD_BYTES > size // 2:
        raise UsageError(f"{text}it lists {num_shards:,} shards: prepare with a larger --samples-per-shard")
    raise UsageError(
        f"{text}it lists {len(plan.skipped):,} images to leave out (all are listed in "
        f"{out / PARTS_NAME / _UNREADABLE_NAME}): move them out of the raw data set, or most of them"
    )


def _largest_record(raw: RawDataset, plan: _Plan, found: list[str] | None) -> int:
    """Bytes of ``plan.json`` or ``dataset.json`` at most; what grows is counted as deep in the JSON as it will be."""
    growing = {"plan": asdict(plan), "of": {"raw": [raw.classes, raw.obtained_from, found]}}
    return len(_json(growing)) + _num_shards(raw, plan) * _SHARD_BYTES + _OTHER_BYTES


def _num_shards(raw: RawDataset, plan: _Plan) -> int:
    return sum(-(-len(samples) // plan.samples_per_shard) for samples in raw.splits.values())


def _write_shards(raw: RawDataset, plan: _Plan, out: Path, num_workers: int) -> dict[str, list[ShardResult]]:
    """Write all shards; returns each split's results in the order of the shards."""
    positions = {split: _kept_positions(raw, plan, split) for split in SPLITS}
    if not len(positions["train"]):
        raise RunError(f"none of the training images of {raw.name} can be read: nothing is left to prepare")
    numbered: dict[str, dict[int, ShardResult]] = {split: {} for split in SPLITS}
    total = sum(len(p) for p in positions.values())
    jobs = _shard_jobs(raw, positions, out, plan.samples_per_shard)
    with Progress("write", total, "images") as progress:
        for job, result in run_jobs(write_shard, jobs, no_more_than(num_workers, total, plan.samples_per_shard)):
            numbered[job.split][job.number] = result
            progress.advance(result.record.rows)
    results = {split: [numbered[split][number] for number in sorted(numbered[split])] for split in SPLITS}
    was_kept = [result.was_kept for split in SPLITS for result in results[split]]
    if any(was_kept):
        say(f"kept {sum(was_kept)} of {len(was_kept)} shards, which an earlier start had finished")
    return results


def _kept_positions(raw: RawDataset, plan: _Plan, split: str) -> np.ndarray:
    """(N,) int64, positions of the readable images of a split; a sample's id is its place among them."""
    skipped = [s["position"] for s in plan.skipped if s["split"] == split]
    return np.delete(np.arange(len(raw.splits[split])), np.array(skipped, np.int64))


def _shard_jobs(
    raw: RawDataset, positions: dict[str, np.ndarray], out: Path, samples_per_shard: int
) -> Iterator[ShardJob]:
    for split, kept in positions.items():
        for number, first_id in enumerate(range(0, len(kept), samples_per_shard)):
            samples = raw.splits[split].take(kept[first_id : first_id + samples_per_shard])
            yield ShardJob(out, split, number, first_id, samples)


def _write_dataset(
    out: Path, raw: RawDataset, plan: _Plan, splits: dict[str, dict[str, Any]], found: list[str] | None
) -> None:
    """Write ``dataset.json``: from here on the data set is prepared; ``found``: differences from what was published."""
    record = {
        "format": DATASET_FORMAT,
        "format_version": DATASET_VERSION,
        "name": raw.name,
        "identity": raw.identity,
        "obtained_from": raw.obtained_from,
        "differences_from_published": found,
        "classes": list(raw.classes),
        "samples_per_shard": plan.samples_per_shard,
        "splits": splits,
        "skipped": [{key: s[key] for key in ("split", "source", "reason")} for s in plan.skipped],
    }
    write_file(out / DATASET_NAME, _json(record))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the work for this process; RunError when another one does."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"another process is preparing {folder.parent}: let it finish, or stop it first") from None
        except OSError as error:
            print(f"warning: no lock in {folder} ({error.strerror}): prepare it from one place only", file=sys.stderr)
        yield
    finally:
        os.close(descriptor)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
