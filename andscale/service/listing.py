"""Samples by key, class and entropy."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from andscale.service.problems import ProblemError
from andscale.service.snapshot import Snapshot


@dataclass(frozen=True)
class Filter:
    """Which samples; None: all.

    Attributes:
        key: a part of the key or of the source.
        class_name: name or number of a class.
        least_entropy: nats.
        most_entropy: nats.
        anchor: anchors, or instances.
    """

    key: str | None = None
    class_name: str | None = None
    least_entropy: float | None = None
    most_entropy: float | None = None
    anchor: bool | None = None


def find_samples(snapshot: Snapshot, wanted: Filter, offset: int, limit: int) -> dict[str, Any]:
    """``total`` and ``limit`` of the samples, by rising entropy.

    A part of a key is looked for in all keys, 0.1 s for a million.
    """
    table, subject = snapshot.subject.table, snapshot.subject
    keep = np.ones(len(table), bool)
    if wanted.least_entropy is not None:
        keep &= table.entropies >= np.float64(wanted.least_entropy)
    if wanted.most_entropy is not None:
        keep &= table.entropies <= np.float64(wanted.most_entropy)
    if wanted.anchor is not None:
        keep &= table.is_anchor == wanted.anchor
    if wanted.class_name is not None:
        keep &= _of_class(snapshot, wanted.class_name)
    if wanted.key is not None:
        if subject.catalogue is None:
            raise ProblemError(409, "keys are not known here: there is no data set")
        keys, sources, part = subject.catalogue.keys, subject.catalogue.sources, wanted.key
        has_part = (i for i in np.flatnonzero(keep).tolist() if part in keys[i] or part in sources[i])
        found = np.fromiter(has_part, np.int64)
        keep = np.zeros(len(table), bool)
        keep[found] = True
    ids = snapshot.by_entropy[keep[snapshot.by_entropy]]
    samples = [snapshot.sample(i) for i in ids[offset : offset + limit].tolist()]
    return {"round": snapshot.round_number, "total": len(ids), "samples": samples}


def _of_class(snapshot: Snapshot, name: str) -> np.ndarray:
    subject = snapshot.subject
    if subject.audit_labels is None:
        raise ProblemError(409, "classes are not known here: no sample has a label")
    if name in subject.classes:
        label = subject.classes.index(name)
    elif name.isdecimal() and name.isascii():
        label = int(name[:9])
    else:
        raise ProblemError(404, f"there is no class {name[:100]!r}: /v1/stats lists them")
    of_class: np.ndarray = subject.audit_labels == label
    return of_class
