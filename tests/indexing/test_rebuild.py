import shutil
from dataclasses import replace

import numpy as np
import pytest

import reference
from andscale.errors import RunError, UsageError
from andscale.indexing import checked, rebuild
from andscale.indexing.faiss_index import open_index
from andscale.indexing.index_search import search
from andscale.store import artifacts
from andscale.store.features import read_features, write_features
from andscale.store.neighbourhoods import read_table
from andscale.store.run_record import load_run
from ranks import run_ranks
from tiny_runs import start_run


@pytest.fixture
def layout(tmp_path, digits, rng):
    return _run_with_memory(tmp_path, digits, rng)


def _run_with_memory(tmp_path, digits, rng, memory=None, **sections):
    """A run whose round 0 has left a memory."""
    memory = reference.unit_rows(rng, 143, 16, clusters=4) if memory is None else memory
    tmp_path.mkdir(exist_ok=True)
    layout = start_run(tmp_path / "run", digits, method={"num_neighbours": 3}, **sections)
    provenance = artifacts.Provenance(load_run(layout.root).config.digest())
    with artifacts.publish(layout.round(0).memory, kind="memory", provenance=provenance) as draft:
        write_features(draft.path("f.parquet"), np.arange(len(memory)), memory)
        draft.add("f.parquet", rows=len(memory))
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
    index_manifest = artifacts.verify(layout.round(1).index, "index")
    assert index_manifest.num_rows == 143
    assert index_manifest.figures["index_kind"] == "flat"
    assert index_manifest.figures["recall_at_1"] == index_manifest.figures["recall_at_10"] == 1.0
    assert index_manifest.figures["bytes"] == (layout.round(1).index / "index.faiss").stat().st_size


def test_the_job_prints_what_it_did_and_what_its_index_is_worth(layout, capsys):
    rebuild.rebuild_index(layout.root, 1)
    printed = capsys.readouterr().out
    assert "swept 143 samples, cpu float32" in printed
    assert "50 rows searched again in float64: the same neighbours and entropies" in printed
    assert "recall@1" in printed and "recall@10" in printed and "queries/s" in printed


@pytest.mark.parametrize("kind", ["hnsw", "ivf_flat"])
def test_the_config_names_the_index(tmp_path, digits, rng, kind):
    layout = _run_with_memory(tmp_path, digits, rng, index={"check_rows": 50, "kind": kind})
    rebuild.rebuild_index(layout.root, 1)
    index, manifest = open_index(layout.round(1).index)
    assert manifest.figures["index_kind"] == kind
    memory, _ = read_features(layout.round(0).memory)
    assert search(index, memory[:5], 1)[1][:, 0].tolist() == [0, 1, 2, 3, 4]


def _approximate_run(tmp_path, digits, rng, **index):
    """2,000 samples: five blocks, of which each sees some in full and draws from the rest."""
    memory = reference.unit_rows(rng, 2000, 16, clusters=12)
    index = {"check_rows": 200, "mode": "approximate"} | index
    return _run_with_memory(tmp_path, digits, rng, memory, index=index)


@pytest.mark.parametrize("kind", ["auto", "ivf_flat"])
def test_the_config_can_ask_for_an_approximate_answer(tmp_path, digits, rng, capsys, kind):
    layout = _approximate_run(tmp_path, digits, rng, kind=kind)
    rebuild.rebuild_index(layout.root, 1)
    table, manifest = read_table(layout.round(1).neighbourhoods)
    assert manifest.figures["mode"] == "approximate"
    assert 0.9 < manifest.figures["recall_at_1"] <= 1.0
    assert manifest.figures["mean_entropy_error_nats"] < 0.1
    assert table.entropy_stderr is not None and len(table.entropy_stderr) == 2000
    assert "2,000 samples approximately" in capsys.readouterr().out


def test_several_ranks_answer_approximately_like_one(tmp_path, digits, rng):
    layouts = [_approximate_run(tmp_path / str(i), digits, np.random.default_rng(1), kind="ivf_flat") for i in range(2)]
    rebuild.rebuild_index(layouts[0].root, 1)
    run_ranks(_rebuild, 2, layouts[1].root, grouped=False)
    first, other = (_contents(layout.round(1).neighbourhoods) for layout in layouts)
    assert first == other


def _rebuild(world, root):
    rebuild.rebuild_index(root, 1, world)


def _contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}


@pytest.mark.parametrize("world_size", [2, 3])
def test_several_ranks_write_the_files_of_one(tmp_path, digits, rng, world_size):
    """1100 samples are three blocks; the table is the same byte for byte, and so is the index."""
    memory = reference.unit_rows(rng, 1100, 16, clusters=4)
    layouts = [_run_with_memory(tmp_path / str(i), digits, rng, memory) for i in range(2)]
    rebuild.rebuild_index(layouts[0].root, 1)
    run_ranks(_rebuild, world_size, layouts[1].root, grouped=False)
    for name in ("neighbourhoods", "index"):
        first, other = (_contents(getattr(layout.round(1), name)) for layout in layouts)
        assert first == other
    # and again: every rank sees that it is done
    run_ranks(_rebuild, world_size, layouts[1].root, grouped=False)


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
    real = checked.discover

    def wrong(*arguments):
        found = real(*arguments)
        return replace(found, entropies=found.entropies + np.float32(0.01))

    monkeypatch.setattr(checked, "discover", wrong)
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


def test_a_baseline_has_no_neighbourhoods_to_find(tmp_path, digits):
    layout = start_run(tmp_path / "baseline", digits, method={"name": "supervised"})
    with pytest.raises(UsageError, match="supervised, which trains without neighbourhoods"):
        rebuild.rebuild_index(layout.root, 1)
