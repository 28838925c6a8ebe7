"""The rebuild job of one round, top to bottom: memory in; neighbourhoods, entropies, anchors and the index out."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from andscale.config import IndexConfig, RunConfig
from andscale.distributed import World, barrier, gather_records, process_group
from andscale.errors import UsageError
from andscale.indexing.exact import Discovery, Request, discover
from andscale.indexing.faiss_index import INDEX_NAME, choose_kind, num_gpus, save
from andscale.indexing.faiss_index import KIND as INDEX_KIND
from andscale.indexing.float64_check import Claims, check_against_float64, check_rows
from andscale.indexing.index_building import build_index
from andscale.indexing.index_quality import describe, measure_index
from andscale.indexing.ring import Ring, gather_arrays
from andscale.indexing.selection import num_anchors, select_anchors
from andscale.store import artifacts
from andscale.store.features import KIND as MEMORY_KIND
from andscale.store.features import read_features
from andscale.store.neighbourhoods import FILE_NAME, NeighbourhoodTable, write_table_file
from andscale.store.neighbourhoods import KIND as TABLE_KIND
from andscale.store.run_layout import RoundLayout, RunLayout
from andscale.store.run_record import load_run

_QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
_MEASURED_ROWS = 1000


@dataclass(frozen=True)
class Rebuild:
    """One rebuild: what it reads, what it writes and by which settings.

    Attributes:
        memory: the folder that is searched.
        folder: the round that is written.
        config: the run's.
        provenance: what the artefacts are made from.
        started: when the job began, ``time.monotonic()``.
    """

    memory: Path
    folder: RoundLayout
    config: RunConfig
    provenance: artifacts.Provenance
    started: float


def rebuild_index(run: Path, round_number: int, world: World | None = None) -> None:
    """Find all neighbourhoods of the memory that the round before left, select this round's anchors, publish both.

    Every rank reads and searches its share of the samples; rank 0 selects, builds the index and publishes.

    Args:
        run: the run's folder.
        round_number: r >= 1.
        world: this rank; None: there is one.

    Raises:
        UsageError: no memory to search, or r outside the curriculum.
        RunError: the memory is damaged, or the result disagrees with float64; nothing is published.
    """
    started, world = time.monotonic(), world or World()
    record, layout = load_run(run), RunLayout(run)
    config, folder = record.config, layout.round(round_number)
    check_inputs_exist(layout, round_number)
    before = layout.round(round_number - 1)
    num_anchors(1, round_number, config.method.num_rounds)
    with process_group(world):
        if gather_records(artifacts.is_complete(folder.neighbourhoods) and artifacts.is_complete(folder.index))[0]:
            if world.is_main:
                print(f"round {round_number} has its neighbourhoods already: {folder.neighbourhoods}")
            return
        manifest = artifacts.load_manifest(before.memory, MEMORY_KIND)
        artifacts.refuse_other_config(before.memory, manifest, config.digest())
        provenance = artifacts.Provenance(config.digest(), {f"rounds/{before.number:02d}/memory": manifest.digest})
        job = Rebuild(before.memory, folder, config, provenance, started)
        found = discover_from_disk(job, Ring(manifest.num_rows, world))
        if world.is_main:
            is_anchor = select_anchors(found.entropies, round_number, config.method.num_rounds)
            table = NeighbourhoodTable(found.neighbour_ids, found.similarities, found.entropies, is_anchor)
            publish(job, table)
        barrier()


def check_inputs_exist(layout: RunLayout, round_number: int) -> None:
    """Raise UsageError for round 0 and when the round before has left no memory."""
    if round_number < 1:
        raise UsageError("round 0 has no neighbourhoods to find: the index job starts with --round 1")
    before = layout.round(round_number - 1)
    if not artifacts.is_complete(before.memory):
        raise UsageError(f"round {before.number} has no memory: run --round {before.number} first")


def discover_from_disk(job: Rebuild, ring: Ring) -> Discovery:
    """Read this rank's share of the memory, search it together with the other ranks, check it against float64.

    Returns:
        The answer for all samples on rank 0, for this rank's elsewhere.
    """
    features, _ = read_features(job.memory)
    rows = ring.rows(ring.world.rank)
    features = np.ascontiguousarray(features[rows.start : rows.stop])
    method = job.config.method
    request = Request(method.num_neighbours, method.temperature, job.config.index.precision)
    return discover_checked(features, request, job.config.index, ring, job.config.seed)


def discover_checked(
    features: np.ndarray, request: Request, settings: IndexConfig, ring: Ring, seed: int = 0
) -> Discovery:
    """Discover, check some rows against float64, and bring the answer together on rank 0.

    Args:
        features: (n, D) float32, this rank's.
        request: K, tau and how.
        settings: ``check_rows``.
        ring: who holds which samples.
        seed: of the rows that are checked.
    """
    found = discover(features, request, ring)
    rows = check_rows(ring.num_samples, settings.check_rows, seed)
    start = ring.rows(ring.world.rank).start
    claims = Claims(start, found.neighbour_ids, found.similarities, found.entropies, "float16" in found.engine)
    check_against_float64(features, claims, request.temperature, rows, ring)
    if ring.world.is_main:
        again = f", {found.num_searched_again:,} rows searched again for ties" if found.num_searched_again else ""
        ranks = f" on {ring.world.world_size} ranks" if ring.world.world_size > 1 else ""
        print(f"swept {ring.num_samples:,} samples, {found.engine}{ranks}{again}")
        print(f"{len(rows)} rows searched again in float64: the same neighbours and entropies", flush=True)
    return gather_discovery(found, ring)


def gather_discovery(found: Discovery, ring: Ring) -> Discovery:
    """All ranks' answers, in the order of sample ids."""
    if ring.world.world_size == 1:
        return found
    counts = [len(ring.rows(rank)) for rank in range(ring.world.world_size)]
    return replace(
        found,
        neighbour_ids=gather_arrays(found.neighbour_ids, counts),
        similarities=gather_arrays(found.similarities, counts),
        entropies=gather_arrays(found.entropies, counts),
    )


def publish(job: Rebuild, table: NeighbourhoodTable) -> None:
    """Write ``index/`` and ``neighbourhoods/``; one that a killed job published before is kept."""
    if not artifacts.is_complete(job.folder.index):
        publish_index(job)
    if not artifacts.is_complete(job.folder.neighbourhoods):
        write_table(job.folder.neighbourhoods, table, job.provenance, job.started)
        print(f"wrote {job.folder.neighbourhoods}", flush=True)


def publish_index(job: Rebuild) -> None:
    """Build the FAISS index over the memory, measure it, write it."""
    features, _ = read_features(job.memory)
    settings = job.config.index
    num_samples, dim = features.shape
    chosen = choose_kind(num_samples, dim, psutil.virtual_memory().available, num_gpus())
    index = build_index(features, chosen if settings.kind == "auto" else settings.kind, job.config.seed)
    folder = job.folder.index
    with artifacts.publish(folder, kind=INDEX_KIND, provenance=job.provenance, started=job.started) as draft:
        save(index, draft.path(INDEX_NAME))
        draft.add(INDEX_NAME, rows=len(features))
        rows = check_rows(len(features), _MEASURED_ROWS, job.config.seed)
        figures = measure_index(index, features, rows, draft.path(INDEX_NAME).stat().st_size)
        draft.figures.update(figures)
    print(f"{describe(figures)}\nwrote {folder}", flush=True)


def write_table(folder: Path, table: NeighbourhoodTable, provenance: artifacts.Provenance, started: float) -> None:
    """Publish a neighbourhood table as an artefact, its figures in the manifest."""
    with artifacts.publish(folder, kind=TABLE_KIND, provenance=provenance, started=started) as draft:
        write_table_file(draft.path(FILE_NAME), table)
        draft.add(FILE_NAME, rows=len(table))
        draft.figures.update(table_figures(table))


def table_figures(table: NeighbourhoodTable) -> dict[str, Any]:
    """Sizes, anchors and entropy quantiles (nats) of a table, for its manifest."""
    return {
        "num_samples": len(table),
        "num_neighbours": table.num_neighbours,
        "num_anchors": int(table.is_anchor.sum()),
        "entropy_quantiles_nats": [round(float(q), 6) for q in np.quantile(table.entropies, _QUANTILES)],
        "mean_similarity": round(float(table.similarities[:, 0].mean()), 6),
    }
