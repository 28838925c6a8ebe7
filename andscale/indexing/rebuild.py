"""The rebuild job of one round, top to bottom: memory in; neighbourhoods, entropies, anchors and the index out."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from andscale.errors import UsageError
from andscale.indexing.exact import Discovery, check_against_float64, discover
from andscale.indexing.faiss_index import INDEX_NAME, save
from andscale.indexing.faiss_index import KIND as INDEX_KIND
from andscale.indexing.selection import num_anchors, select_anchors
from andscale.store import artifacts
from andscale.store.features import read_features
from andscale.store.neighbourhoods import FILE_NAME, NeighbourhoodTable, write_table_file
from andscale.store.neighbourhoods import KIND as TABLE_KIND
from andscale.store.run_layout import RoundLayout, RunLayout
from andscale.store.run_record import load_run

_QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


def rebuild_index(run: Path, round_number: int) -> None:
    """Find all neighbourhoods of the memory that the round before left, select this round's anchors, publish both.

    Args:
        run: the run's folder.
        round_number: r >= 1.

    Raises:
        UsageError: no memory to search, or r outside the curriculum.
        RunError: the memory is damaged, or the result disagrees with float64; nothing is published.
    """
    started = time.monotonic()
    record, layout = load_run(run), RunLayout(run)
    config, folder = record.config, layout.round(round_number)
    check_inputs_exist(layout, round_number)
    if artifacts.is_complete(folder.neighbourhoods) and artifacts.is_complete(folder.index):
        print(f"round {round_number} has its neighbourhoods already: {folder.neighbourhoods}")
        return
    before = layout.round(round_number - 1)
    num_anchors(1, round_number, config.method.num_rounds)
    features, manifest = read_features(before.memory)
    artifacts.refuse_other_config(before.memory, manifest, config.digest())
    provenance = artifacts.Provenance(config.digest(), {f"rounds/{before.number:02d}/memory": manifest.digest})
    found = discover(features, config.method.num_neighbours, config.method.temperature, config.index.tile_bytes)
    rows = sample_rows(len(features), config.index.check_rows, config.seed)
    check_against_float64(features, found, config.method.temperature, rows)
    print(f"{len(rows)} rows searched again in float64: the same neighbours and entropies", flush=True)
    table = NeighbourhoodTable(
        neighbour_ids=found.neighbour_ids,
        similarities=found.similarities,
        entropies=found.entropies,
        is_anchor=select_anchors(found.entropies, round_number, config.method.num_rounds),
    )
    publish_discovery(folder, found, table, provenance, started)


def check_inputs_exist(layout: RunLayout, round_number: int) -> None:
    """Raise UsageError for round 0 and when the round before has left no memory."""
    if round_number < 1:
        raise UsageError("round 0 has no neighbourhoods to find: the index job starts with --round 1")
    before = layout.round(round_number - 1)
    if not artifacts.is_complete(before.memory):
        raise UsageError(f"round {before.number} has no memory: run --round {before.number} first")


def publish_discovery(
    folder: RoundLayout,
    found: Discovery,
    table: NeighbourhoodTable,
    provenance: artifacts.Provenance,
    started: float,
) -> None:
    """Write ``index/`` and ``neighbourhoods/``; one that a killed job published before is kept."""
    if not artifacts.is_complete(folder.index):
        with artifacts.publish(folder.index, kind=INDEX_KIND, provenance=provenance, started=started) as draft:
            save(found.index, draft.path(INDEX_NAME))
            draft.add(INDEX_NAME, rows=len(table))
            draft.figures.update(index_kind="flat", dim=int(found.index.d))
        print(f"wrote {folder.index}", flush=True)
    if not artifacts.is_complete(folder.neighbourhoods):
        write_table(folder.neighbourhoods, table, provenance, started)
        print(f"wrote {folder.neighbourhoods}", flush=True)


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


def sample_rows(num_samples: int, count: int, seed: int) -> np.ndarray:
    """The rows to check: (min(count, N),) int64, ascending, a function of the seed."""
    rng = np.random.default_rng([seed, 0x636865])
    return np.sort(rng.choice(num_samples, size=min(count, num_samples), replace=False))
