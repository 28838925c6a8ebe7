"""The first step of ``prepare``: every image is decoded once, and those that cannot be are listed.

A job carries the samples that it is about, so a process needs nothing but the job, whether it was forked or spawned.
"""

import errno
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from andscale.data.images import check_image
from andscale.data.raw import RawDataset, RawSplit, TarSplit
from andscale.data.shards import SPLITS
from andscale.data.workers import no_more_than, run_jobs
from andscale.errors import RunError
from andscale.metrics import Progress
from andscale.store.files import write_file

_NUM_SHOWN = 20
_IMAGES_PER_CHECK = 256
_FAULTS_OF_A_FILE = (errno.ENOENT, errno.EACCES, errno.EISDIR)
"""All else is the storage's, and so is everything of an archive, which was there when its members were listed."""


@dataclass(frozen=True)
class CheckJob:
    """Images to check: ``samples`` are those of ``split`` from position ``first`` on."""

    split: str
    first: int
    samples: RawSplit


@dataclass(frozen=True)
class Checked:
    """What was found in the images of a job, by their places in it.

    Attributes:
        unreadable: (place, reason) of those that cannot be decoded.
        dim: grey images of 16 bits whose highest bit is never set.
    """

    unreadable: list[tuple[int, str]]
    dim: list[int]


def check_all(
    raw: RawDataset, listed_in: Path, num_workers: int, *, skip_bad: bool
) -> tuple[list[dict[str, Any]], str]:
    """Decode every file-backed image once; lists those that cannot be, and stops unless they may be skipped.

    Args:
        raw: what is being prepared.
        listed_in: a text file for all of them.
        num_workers: processes.
        skip_bad: whether they may be skipped.

    Returns:
        Split, position in it, source and reason of each that cannot be decoded. A warning about all others, or ''.

    Raises:
        RunError: there are some, and they may not be skipped; the disk failed.
    """
    total = sum(len(samples) for samples in raw.splits.values() if samples.is_file_backed)
    found, num_dim, first_dim = [], 0, None
    with Progress("check", total, "images") as progress:
        for job, checked in run_jobs(
            check_images, _check_jobs(raw), no_more_than(num_workers, total, _IMAGES_PER_CHECK)
        ):
            progress.advance(len(job.samples))
            split = SPLITS.index(job.split)
            found += [(split, job.first + at, reason) for at, reason in checked.unreadable]
            num_dim += len(checked.dim)
            for place in ((split, job.first + at) for at in checked.dim):
                first_dim = place if first_dim is None else min(first_dim, place)
    skipped = [
        {"split": SPLITS[split], "position": at, "source": raw.splits[SPLITS[split]].describe(at), "reason": reason}
        for split, at, reason in sorted(found)
    ]
    if skipped:
        _list_unreadable(skipped, total, listed_in, skip_bad=skip_bad)
    return skipped, "" if first_dim is None else _dim_warning(raw, num_dim, *first_dim)


def _list_unreadable(skipped: list[dict[str, Any]], total: int, listed_in: Path, *, skip_bad: bool) -> None:
    # JSON strings, so that a file name with a line break stays on its line
    lines = [f"{json.dumps(s['source'], ensure_ascii=False)}: {s['reason']}" for s in skipped]
    write_file(listed_in, "".join(f"{line}\n" for line in lines).encode())
    for line in lines[:_NUM_SHOWN]:
        say(f"{'left out' if skip_bad else 'unreadable'}: {line}")
    if len(lines) > _NUM_SHOWN:
        say(f"and {len(lines) - _NUM_SHOWN} more, listed in {listed_in}")
    if not skip_bad:
        raise RunError(
            f"{len(lines)} of {total} images cannot be read (all are listed in {listed_in}): mend or remove them, or "
            "leave them out with --skip-bad"
        )


def _dim_warning(raw: RawDataset, number: int, split: int, position: int) -> str:
    example = json.dumps(raw.splits[SPLITS[split]].describe(position), ensure_ascii=False)
    return (
        f"grey images of 16 bits without a value above 32,767: {number:,}, for one {example}: the upper 8 bits are "
        "what is read, so they are dark and have few levels: if they hold fewer bits, as 12, convert them to the full "
        "range and prepare them again"
    )


def _check_jobs(raw: RawDataset) -> Iterator[CheckJob]:
    for split, samples in raw.splits.items():
        for first in range(0, len(samples) if samples.is_file_backed else 0, _IMAGES_PER_CHECK):
            last = min(first + _IMAGES_PER_CHECK, len(samples))
            yield CheckJob(split, first, samples.take(np.arange(first, last)))


def check_images(job: CheckJob) -> Checked:
    """Decode every image.

    Raises:
        RunError: the disk failed, which says nothing of an image.
    """
    import warnings

    checked = Checked([], [])
    with warnings.catch_warnings():
        # what Pillow warns of is either refused by check_image or harmless; a line an image helps nobody
        warnings.simplefilter("ignore")
        for position in range(len(job.samples)):
            try:
                header = check_image(job.samples.read(position))
            except OSError as error:
                refuse_disk_failure(error, job.samples, position)
                checked.unreadable.append((position, error.strerror or str(error)))
            except RunError as error:
                checked.unreadable.append((position, str(error)))
            else:
                if header.is_dim:
                    checked.dim.append(position)
    return checked


def refuse_disk_failure(error: OSError, samples: RawSplit, position: int) -> None:
    """Raise RunError for what is no fault of this image: to leave it out would lose a good one for good."""
    if error.errno in _FAULTS_OF_A_FILE and not isinstance(samples, TarSplit):
        return
    where = json.dumps(samples.describe(position), ensure_ascii=False)
    raise RunError(
        f"{where}: the disk failed ({error.strerror or error}): start again; if it stays so, take the file away"
    ) from None


def say(text: str) -> None:
    """Results go to standard output, so what happens on the way goes beside the progress bar."""
    print(text, file=sys.stderr, flush=True)
