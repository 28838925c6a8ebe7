"""What an audit or the service looks at: one committed neighbourhood table, and what is known about its samples."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from andscale.data.shards import Catalogue, PreparedDataset, load_catalogue, open_dataset
from andscale.errors import RunError, UsageError
from andscale.spelling import spelt
from andscale.store import artifacts
from andscale.store.features import read_features
from andscale.store.foreign import read_foreign_features, to_unit_length
from andscale.store.neighbourhoods import KIND, NeighbourhoodTable, read_table
from andscale.store.run_layout import RunLayout
from andscale.store.run_record import load_run

_MAX_CLASSES = 1 << 24
"""Figures have a place for every class number."""


@dataclass(frozen=True, eq=False)
class Subject:
    """One neighbourhood table: of a run's round, or of any features.

    Attributes:
        root: the run's folder, or the folder that ``tools/discover.py`` wrote.
        round_number: None for a table without a run.
        table: N rows by sample id.
        manifest: of the table.
        dataset: where images, keys and labels come from; None where only features are known.
        catalogue: of the N training samples; None without a data set.
        audit_labels: (N,) int32, -1 = none; None when no sample has one.
        classes: names by class number; empty without names.
    """

    root: Path
    round_number: int | None
    table: NeighbourhoodTable
    manifest: artifacts.Manifest
    dataset: PreparedDataset | None
    catalogue: Catalogue | None
    audit_labels: np.ndarray | None
    classes: tuple[str, ...]

    @property
    def is_labelled(self) -> bool:
        """Whether every sample has a label, which purity needs."""
        return self.audit_labels is not None and bool((self.audit_labels >= 0).all())

    def class_name(self, label: int) -> str:
        """A class's name, or its number as text where it has none; empty for -1."""
        if label < 0:
            return ""
        return self.classes[label] if label < len(self.classes) else str(label)


def open_subject(
    place: Path, round_number: int | None = None, known: Path | None = None, beside: Subject | None = None
) -> Subject:
    """Verify and read a table with all that is known about its samples.

    Args:
        place: a run, or a folder that ``tools/discover.py`` wrote.
        round_number: of a run; None takes the newest round with neighbourhoods.
        known: for a table without a run, whose samples it has: a prepared data set, whose training images the rows
            are in the order of the catalogue, or a ``.npy`` file of (N,) integer labels. Of a run, a data set that was
            moved: its fingerprint must be the run's.
        beside: opened before; where it has the same data set, its catalogue is taken and not read again.

    Raises:
        UsageError: no such round or table; labels of another length. RunError: something is damaged.
    """
    if artifacts.is_complete(place):
        if round_number is not None:
            raise UsageError(f"{place} is one table and has no rounds: leave --round out")
        table, manifest = read_table(place)
        return _with_samples(place, None, (table, manifest), known, beside)
    record, layout = load_run(place), RunLayout(place)
    number = choose_round(place, round_number)
    found = read_table(layout.round(number).neighbourhoods)
    dataset_root = known or record.dataset_root
    subject = _with_samples(place, number, found, dataset_root, beside)
    if subject.dataset is not None and subject.dataset.fingerprint != record.dataset_fingerprint:
        raise RunError(f"{dataset_root} is not the data set that {place} was trained on: its fingerprint is another")
    return subject


def rounds_with_tables(run: Path) -> list[int]:
    """The rounds of a run that have complete neighbourhoods, ascending."""
    layout = RunLayout(run)
    return [number for number in layout.round_numbers() if artifacts.is_complete(layout.round(number).neighbourhoods)]


def choose_round(run: Path, round_number: int | None) -> int:
    """The round asked for, or the newest that has neighbourhoods; UsageError where there is none."""
    method, with_table = load_run(run).config.method, rounds_with_tables(run)
    if round_number is None:
        if not with_table and not method.finds_neighbours:
            raise UsageError(f"{run} has no neighbourhoods: method.name = {method.name} finds none")
        if not with_table:
            raise UsageError(f"{run} has no neighbourhoods yet: run {spelt('launch')} --round 1 first")
        return with_table[-1]
    if round_number not in with_table:
        known = ", ".join(map(str, with_table)) or "none"
        raise UsageError(f"round {round_number} has no neighbourhoods; rounds with neighbourhoods: {known}")
    return round_number


def load_features(subject: Subject, features: Path | None = None) -> np.ndarray:
    """The (N, D) float32 unit-length features that the table was made from.

    Args:
        subject: of a run: the memory that the round before left.
        features: the file or folder that ``tools/discover.py`` was given; needed where there is no run.

    Raises:
        UsageError: no features known, or of another number. RunError: they are damaged or not those of the table.
    """
    if features is not None:
        values, digest = read_foreign_features(features, None)
        if subject.round_number is None and digest != subject.manifest.provenance.parents.get("features"):
            raise RunError(f"{features} does not hold the features that {subject.root} was made from")
        found = to_unit_length(values, features)
    elif subject.round_number is None:
        raise UsageError(f"{subject.root} has no features of its own: name the file that it was made from")
    else:
        found, _ = read_features(RunLayout(subject.root).round(subject.round_number - 1).memory)
    if len(found) != len(subject.table):
        raise RunError(f"{len(found):,} features and {len(subject.table):,} rows in the table of {subject.root}")
    return found


def _with_samples(
    root: Path,
    number: int | None,
    found: tuple[NeighbourhoodTable, artifacts.Manifest],
    known: Path | str | None,
    beside: Subject | None,
) -> Subject:
    table, manifest = found
    if manifest.kind != KIND:
        raise UsageError(f"{root} is not a neighbourhood table but {manifest.kind}")
    if known is None:
        return Subject(root, number, table, manifest, None, None, None, ())
    if str(known).endswith(".npy"):
        return Subject(root, number, table, manifest, None, None, _read_labels(Path(known), len(table)), ())
    dataset = open_dataset(known)
    catalogue = None if beside is None or beside.dataset != dataset else beside.catalogue
    if catalogue is None or len(catalogue.labels) != len(table):
        catalogue = load_catalogue(dataset, "train", len(table))
    if len(catalogue.labels) != len(table):
        raise UsageError(f"{known} has {len(catalogue.labels):,} training images, the table {len(table):,} rows")
    labels = catalogue.labels if (catalogue.labels >= 0).any() else None
    return Subject(root, number, table, manifest, dataset, catalogue, labels, dataset.classes)


def _read_labels(path: Path, num_samples: int) -> np.ndarray:
    try:
        values = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist") from None
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"{path} is not a .npy file of labels: {error}") from None
    if values.shape != (num_samples,) or values.dtype.kind not in "iu":
        raise UsageError(f"{path}: {values.dtype} {values.shape}, expected ({num_samples},) integers, one label a row")
    if values.size and int(values.max()) >= _MAX_CLASSES:
        raise UsageError(f"{path}: label {int(values.max())}, expected class numbers below {_MAX_CLASSES}, -1 for none")
    labels: np.ndarray = (
        np.maximum(values, -1).astype(np.int32) if values.dtype.kind == "i" else values.astype(np.int32)
    )
    return labels
