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


def find_unreadable(raw: RawDataset, listed_in: Path, num_workers: int, *, skip_bad: bool) -> list[dict[str, Any]]:
    """Decode every file-backed image once; lists those that cannot be, and stops unless they may be skipped.

    Args:
        raw: what is being prepared.
        listed_in: a text file for all of them.
        num_workers: processes.
        skip_bad: whether they may be skipped.

    Returns:
        Split, position in it, source and reason of each.

    Raises:
        RunError: there are some, and they may not be skipped.
    """
    total = sum(len(samples) for samples in raw.splits.values() if samples.is_file_backed)
    found = []
    with Progress("check", total, "images") as progress:
        for job, complaints in run_jobs(
            check_images, _check_jobs(raw), no_more_than(num_workers, total, _IMAGES_PER_CHECK)
        ):
            progress.advance(len(job.samples))
            found += [(SPLITS.index(job.split), job.first + at, reason) for at, reason in complaints]
    skipped = [
        {"split": SPLITS[split], "position": at, "source": raw.splits[SPLITS[split]].describe(at), "reason": reason}
        for split, at, reason in sorted(found)
    ]
    if not skipped:
        return []
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
    return skipped


def _check_jobs(raw: RawDataset) -> Iterator[CheckJob]:
    for split, samples in raw.splits.items():
        for first in range(0, len(samples) if samples.is_file_backed else 0, _IMAGES_PER_CHECK):
            last = min(first + _IMAGES_PER_CHECK, len(samples))
            yield CheckJob(split, first, samples.take(np.arange(first, last)))


def check_images(job: CheckJob) -> list[tuple[int, str]]:
    """Decode every image; returns (place in the job, reason) of those that cannot be.

    Raises:
        RunError: the disk failed, which says nothing of an image.
    """
    import warnings

    unreadable = []
    with warnings.catch_warnings():
        # what Pillow warns of is either refused by check_image or harmless; a line an image helps nobody
        warnings.simplefilter("ignore")
        for position in range(len(job.samples)):
            try:
                check_image(job.samples.read(position))
            except OSError as error:
                refuse_disk_failure(error, job.samples, position)
                unreadable.append((position, error.strerror or str(error)))
            except RunError as error:
                unreadable.append((position, str(error)))
    return unreadable


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
