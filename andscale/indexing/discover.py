"""Neighbourhoods and entropies of any features, without a run."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np

from andscale.config import IndexConfig
from andscale.errors import UsageError
from andscale.indexing.checked import discover_checked
from andscale.indexing.exact import Request
from andscale.indexing.rebuild import make_table, table_figures, write_table
from andscale.indexing.ring import Ring
from andscale.indexing.selection import select_anchors
from andscale.store import artifacts, files
from andscale.store.foreign import read_foreign_features, to_unit_length
from andscale.store.neighbourhoods import NeighbourhoodTable

Mode = Literal["auto", "exact", "approximate"]


@dataclass(frozen=True)
class DiscoverRequest:
    """What to find.

    Attributes:
        num_neighbours: K.
        temperature: tau.
        round_number: r, with ``num_rounds``: the floor(N r / R) samples of lowest entropy become anchors.
        num_rounds: R; None marks no anchors.
        column: the list column, where a Parquet file has several.
        mode: exact, approximate, or auto: exact unless that takes more than an hour here.
    """

    num_neighbours: int
    temperature: float
    round_number: int | None = None
    num_rounds: int | None = None
    column: str | None = None
    mode: Mode = "auto"


def as_mode(text: str) -> Mode:
    """What ``--mode`` may be; UsageError with the choices for anything else."""
    for mode in get_args(Mode):
        if mode == text:
            return cast(Mode, mode)
    raise UsageError(f"--mode {text!r}: choose one of {', '.join(get_args(Mode))}")


def discover_features(features_path: Path, out: Path, request: DiscoverRequest) -> NeighbourhoodTable:
    """Write the neighbourhood table of foreign features to the folder ``out`` (a ``neighbourhoods`` artefact).

    Raises:
        UsageError: bad parameters or unsuitable files. RunError: NaN or zero rows; a check that did not hold.
    """
    started = time.monotonic()
    if (request.round_number is None) != (request.num_rounds is None):
        raise UsageError("--round and --rounds belong together: both, or neither for a table without anchors")
    files.check_writable(out.parent)
    artifacts.refuse_existing(out)
    values, digest = read_foreign_features(features_path, request.column)
    sought = Request(request.num_neighbours, request.temperature)
    sought.check(len(values))
    features = to_unit_length(values, features_path)
    is_anchor = np.zeros(len(features), bool)
    answer = discover_checked(features, sought, IndexConfig(mode=request.mode), Ring(len(features)))
    if request.round_number is not None and request.num_rounds is not None:
        is_anchor = select_anchors(answer.found.entropies, request.round_number, request.num_rounds)
    table = make_table(answer, is_anchor)
    asked = asdict(request)
    if request.mode == "auto":
        del asked["mode"]  # as in the hashes of tables from before it came
    parameters = files.hash_bytes(repr(sorted(asked.items())).encode())
    write_table(out, table, artifacts.Provenance(parameters, {"features": digest}), started, answer.figures)
    return table


def describe(table: NeighbourhoodTable, out: Path) -> str:
    """What was written, in three lines."""
    figures = table_figures(table)
    quantiles = "/".join(f"{q:.3f}" for q in figures["entropy_quantiles_nats"])
    return (
        f"{figures['num_samples']:,} samples, k = {figures['num_neighbours']}, {figures['num_anchors']:,} anchors\n"
        f"entropy min/q25/q50/q75/max: {quantiles} nats\nwrote {out}"
    )
