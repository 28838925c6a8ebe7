import shutil

import numpy as np
import pytest

import reference
from andscale.errors import RunError, UsageError
from andscale.indexing import rebuild
from andscale.indexing.exact import Discovery
from andscale.store import artifacts
from andscale.store.features import read_features, write_features
from andscale.store.neighbourhoods import read_table
from andscale.store.run_record import load_run
from tiny_runs import start_run


@pytest.fixture
def layout(tmp_path, digits, rng):
    """A run whose round 0 has left a memory."""
    layout = start_run(tmp_path / "run", digits, method={"num_neighbours": 3})
    provenance = artifacts.Provenance(load_run(layout.root).config.digest())
    with artifacts.publish(layout.round(0).memory, kind="memory", provenance=provenance) as draft:
        write_features(draft.path("f.parquet"), np.arange(143), reference.unit_rows(rng, 143, 16, clusters=4))
        draft.add("f.parquet", rows=143)
    return layout


def test_the_job_finds_the_neighbourhoods_of_the_memory_and_selects_the_anchors(layout):
    rebuild.rebuild_index(layout.root, 1)
    memory, manifest = read_features(layout.round(0).memory)
    table, table_manifest = read_table(layout.round(1).neighbourhoods)
    for i in range(0, 143, 10):
        assert table.neighbour_ids[i].tolist() == reference.neighbours(memory, i, 3)[0]
        assert table.entropies[i] == pytest.approx(reference.entropy(memory[i], memory, 0.1), abs=1e-4)
    assert table.is_anchor.tolist() == reference.anchors(table.entropies.tolist(), 1, 4)
    assert table_manifest.provenance.parents == {"rounds/00/memory": manifest.digest}
    assert table_manifest.figures["num_anchors"] == 35
    assert artifacts.verify(layout.round(1).index, "index").num_rows == 143


def test_killed_between_its_two_artefacts_the_job_finishes_the_other(layout, monkeypatch):
    def killed(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(rebuild, "write_table", killed)
    with pytest.raises(KeyboardInterrupt):
        rebuild.rebuild_index(layout.root, 1)
    assert artifacts.is_complete(layout.round(1).index)
    assert not layout.round(1).neighbourhoods.exists()
    monkeypatch.undo()
    rebuild.rebuild_index(layout.root, 1)
    assert artifacts.is_complete(layout.round(1).neighbourhoods)


def test_a_wrong_answer_is_never_published(layout, monkeypatch):
    real = rebuild.discover

    def wrong(*arguments):
        found = real(*arguments)
        return Discovery(found.neighbour_ids, found.similarities, found.entropies + np.float32(0.01), found.index)

    monkeypatch.setattr(rebuild, "discover", wrong)
    with pytest.raises(RunError, match="disagrees with float64"):
        rebuild.rebuild_index(layout.root, 1)
    assert not layout.round(1).root.exists()


def test_rounds_outside_the_curriculum_and_foreign_memories_are_refused(layout):
    with pytest.raises(UsageError, match="round 4 has no memory: run --round 4 first"):
        rebuild.rebuild_index(layout.root, 5)
    shutil.rmtree(layout.round(0).memory)
    with artifacts.publish(layout.round(0).memory, kind="memory", provenance=artifacts.Provenance("other")) as draft:
        write_features(draft.path("f.parquet"), np.arange(2), np.eye(2, dtype=np.float32))
        draft.add("f.parquet", rows=2)
    with pytest.raises(RunError, match="was made with another config"):
        rebuild.rebuild_index(layout.root, 1)
