"""FAISS index files that were made to harm, with manifests that fit: refused before they reach this process."""

import struct
from pathlib import Path

import faiss
import numpy as np
import pytest

import reference
from andscale.errors import RunError
from andscale.indexing.faiss_index import INDEX_NAME, KIND, open_index, save
from andscale.indexing.index_building import build_index
from andscale.store import artifacts

KINDS = ("flat", "ivf_flat", "ivf_pq", "hnsw")
NUM, DIM = 600, 16


@pytest.fixture(scope="module")
def indexes():
    rows = reference.unit_rows(np.random.default_rng(3), NUM, DIM)
    return {kind: build_index(rows, kind, seed=1) for kind in KINDS}


@pytest.fixture(scope="module")
def files(indexes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for kind, index in indexes.items():
        save(index, folder / kind)
    return {kind: (folder / kind).read_bytes() for kind in KINDS}


def publish(folder, data, kind="flat", num_rows=NUM, dim=DIM):
    with artifacts.publish(folder, kind=KIND, provenance=artifacts.Provenance("c")) as draft:
        draft.path(INDEX_NAME).write_bytes(data)
        draft.add(INDEX_NAME, num_rows)
        draft.figures.update(index_kind=kind, dim=dim)
    return folder


def patched(data, place, form, *values):
    part = struct.pack(form, *values)
    return data[:place] + part + data[place + len(part) :]


@pytest.mark.parametrize(
    "data",
    [b"", b"IxM2", b"IxFI" + bytes(60), b"IxPT" + bytes(60), b"\0" * 100, b"ann\0" * 30],
    ids=["empty", "cut", "flat alone", "pre-transform", "zeros", "other"],
)
def test_a_file_that_is_no_index_of_ours_is_refused_unread(tmp_path, data, monkeypatch):
    monkeypatch.setattr(faiss, "read_index", lambda *_: pytest.fail("FAISS saw it"))
    with pytest.raises(RunError, match=r"index\.faiss.*none of ours"):
        open_index(publish(tmp_path / "index", data))


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_that_claims_billions_is_refused_unread(tmp_path, files, kind, monkeypatch):
    monkeypatch.setattr(faiss, "read_index", lambda *_: pytest.fail("FAISS saw it"))
    data = patched(files[kind], 8, "<q", 10**12)
    with pytest.raises(RunError, match=r"index\.faiss has \d+ bytes, too few for the 1000000000000 vectors"):
        open_index(publish(tmp_path / "index", data, kind, 10**12))
    wide = patched(files[kind], 4, "<i", 2**31 - 1)
    with pytest.raises(RunError, match="too few for the 600 vectors of 2147483647"):
        open_index(publish(tmp_path / "wide", wide, kind, NUM, 2**31 - 1))
    with pytest.raises(RunError, match="another metric"):
        open_index(publish(tmp_path / "metric", patched(files[kind], 33, "<i", 1), kind))


def test_links_to_vectors_that_are_not_there_are_refused(tmp_path, indexes, files):
    links = faiss.vector_to_array(indexes["hnsw"].hnsw.neighbors)
    data = files["hnsw"]
    place = data.index(links[:8].tobytes())
    for number in (NUM, 2**31 - 1, -2):
        bad = patched(data, place, "<i", number)
        with pytest.raises(RunError, match=r"index\.faiss is refused: "):
            open_index(publish(tmp_path / f"index{number}", bad, "hnsw"))


def test_ids_that_are_not_there_are_refused(tmp_path, files):
    ids = np.arange(NUM).tobytes()
    bad = patched(files["flat"], files["flat"].rindex(ids), "<q", NUM)
    with pytest.raises(RunError, match=r"index\.faiss is refused: it has ids outside 0\.\.599"):
        open_index(publish(tmp_path / "index", bad))


def test_a_vector_that_claims_terabytes_is_refused(tmp_path, files):
    place = files["flat"].rindex(struct.pack("<Q", NUM), 0, files["flat"].rindex(np.arange(NUM).tobytes()))
    bad = patched(files["flat"], place, "<Q", 1 << 40)
    with pytest.raises(RunError, match=r"index\.faiss is refused: "):
        open_index(publish(tmp_path / "index", bad))


def test_nothing_of_a_refused_index_stays_mapped(tmp_path, files):
    folder = publish(tmp_path / "index", files["hnsw"][:5000], "hnsw", 20)
    with pytest.raises(RunError):
        open_index(folder)
    assert str(folder) not in Path("/proc/self/maps").read_text()
