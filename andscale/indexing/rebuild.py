"""The rebuild job of one round, top to bottom: memory in; neighbourhoods, entropies, anchors and the index out."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from andscale.config import RunConfig
from andscale.distributed import World, barrier, gather_records, others_wait, process_group
from andscale.errors import UsageError
from andscale.indexing.checked import Answer, discover_checked
from andscale.indexing.exact import Request
from andscale.indexing.faiss_index import INDEX_NAME, choose_kind, num_gpus, open_index, save
from andscale.indexing.faiss_index import KIND as INDEX_KIND
from andscale.indexing.float64_check import check_rows
from andscale.indexing.index_building import build_index
from andscale.indexing.index_quality import describe, measure_index
from andscale.indexing.ring import Ring
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
        UsageError: no memory to search, r outside the curriculum, or a method without neighbourhoods.
        RunError: the memory is damaged, or the result disagrees with float64; nothing is published.
    """
    started, world = time.monotonic(), world or World()
    record, layout = load_run(run), RunLayout(run)
    config, folder = record.config, layout.round(round_number)
    if not config.method.finds_neighbours:
        raise UsageError(f"{run} has method.name = {config.method.name}, which trains without neighbourhoods")
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
        answer, features = discover_from_disk(job, Ring(manifest.num_rows, world))
        with others_wait():
            if world.is_main:
                is_anchor = select_anchors(answer.found.entropies, round_number, config.method.num_rounds)
                publish(job, make_table(answer, is_anchor), answer.figures, features)


def check_inputs_exist(layout: RunLayout, round_number: int) -> None:
    """Raise UsageError for round 0 and when the round before has left no memory."""
    if round_number < 1:
        raise UsageError("round 0 has no neighbourhoods to find: the index job starts with --round 1")
    before = layout.round(round_number - 1)
    if not artifacts.is_complete(before.memory):
        raise UsageError(f"round {before.number} has no memory: run --round {before.number} first")


def discover_from_disk(job: Rebuild, ring: Ring) -> tuple[Answer, np.ndarray]:
    """Read this rank's share of the memory and search it together with the other ranks.

    Returns:
        The answer, of all samples on rank 0, and this rank's features.
    """
    world = ring.world
    # ranks share the checking of hashes; the first collective comes after all have read
    features, _ = read_features(job.memory, rows=ring.rows(world.rank), share=(world.rank, world.world_size))
    barrier()

    def index_for_all() -> Any:
        """Approximate discovery asks the index, which is built and published first."""
        with others_wait():
            if world.is_main and not artifacts.is_complete(job.folder.index):
                publish_index(job, features)
        return open_index(job.folder.index)[0]

    method, settings = job.config.method, job.config.index
    request = Request(method.num_neighbours, method.temperature, settings.precision)
    return discover_checked(features, request, settings, ring, job.config.seed, index_for_all), features


def publish(job: Rebuild, table: NeighbourhoodTable, figures: dict[str, Any], features: np.ndarray) -> None:
    """Write ``index/`` and ``neighbourhoods/``; one that a killed job published before is kept."""
    if not artifacts.is_complete(job.folder.index):
        publish_index(job, features)
    if not artifacts.is_complete(job.folder.neighbourhoods):
        write_table(job.folder.neighbourhoods, table, job.provenance, job.started, figures)
        print(f"wrote {job.folder.neighbourhoods}", flush=True)


def publish_index(job: Rebuild, features: np.ndarray) -> None:
    """Build the FAISS index over the memory, measure it, write it.

    Args:
        job: what to write.
        features: (n, D) float32; where they are one rank's only, the memory is read whole.
    """
    if len(features) < artifacts.load_manifest(job.memory, MEMORY_KIND).num_rows:
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


def make_table(answer: Answer, is_anchor: np.ndarray) -> NeighbourhoodTable:
    """The table of an answer and (N,) bool anchors."""
    found = answer.found
    return NeighbourhoodTable(
        found.neighbour_ids, found.similarities, found.entropies, is_anchor, answer.entropy_stderr
    )


def write_table(
    folder: Path,
    table: NeighbourhoodTable,
    provenance: artifacts.Provenance,
    started: float,
    figures: dict[str, Any],
) -> None:
    """Publish a neighbourhood table as an artefact; ``figures`` and its own go into the manifest."""
    with artifacts.publish(folder, kind=TABLE_KIND, provenance=provenance, started=started) as draft:
        write_table_file(draft.path(FILE_NAME), table)
        draft.add(FILE_NAME, rows=len(table))
        draft.figures.update(table_figures(table) | figures)


def table_figures(table: NeighbourhoodTable) -> dict[str, Any]:
    """Sizes, anchors and entropy quantiles (nats) of a table, for its manifest."""
    return {
        "num_samples": len(table),
        "num_neighbours": table.num_neighbours,
        "num_anchors": int(table.is_anchor.sum()),
        "entropy_quantiles_nats": [round(float(q), 6) for q in np.quantile(table.entropies, _QUANTILES)],
        "mean_similarity": round(float(table.similarities[:, 0].mean()), 6),
    }
