"""One byte flipped in, one file cut off, one file missing from each kind of artefact: every reader names it."""

import json
import os
import shutil

import pytest

from andscale.audit.purity import inspect_round
from andscale.audit.tables import run_table
from andscale.distributed import World
from andscale.errors import RunError
from andscale.evaluation.evaluate import evaluate_round
from andscale.indexing.faiss_index import open_index
from andscale.indexing.rebuild import rebuild_index
from andscale.store.run_layout import RunLayout
from andscale.training.loop import train_round
from tiny_runs import start_run

ONE = {"optim": {"num_epochs": 1, "global_batch_size": 32}, "method": {"num_rounds": 2}}


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(bytes(data))


def _truncate(path):
    os.truncate(path, path.stat().st_size - 1)


def _remove(path):
    path.unlink()


DAMAGES = {"flipped": _flip, "cut off": _truncate, "missing": _remove}

# artefact, file in it, what has to be made anew so that the reader reads, the reader
READERS = {
    "memory": ("rounds/00/memory", "*.parquet", ("01/neighbourhoods", "01/index"), lambda run: rebuild_index(run, 1)),
    "neighbourhoods": ("rounds/01/neighbourhoods", "*.parquet", ("01/model", "01/memory"), lambda run: _train(run, 1)),
    "neighbourhoods in an audit": ("rounds/01/neighbourhoods", "*.parquet", (), lambda run: inspect_round(run, 1)),
    "model of the round before": (
        "rounds/00/model",
        "model.safetensors",
        ("01/model", "01/memory"),
        lambda run: _train(run, 1),
    ),
    "model": ("rounds/01/model", "model.safetensors", ("01/evaluation",), lambda run: evaluate_round(run, 1, World())),
    "index": ("rounds/01/index", "index.faiss", (), lambda run: open_index(RunLayout(run).round(1).index)),
    "evaluation": ("rounds/01/evaluation", "evaluation.json", (), run_table),
    "catalogue": ("../data", "train.parquet", ("01/evaluation",), lambda run: evaluate_round(run, 1, World())),
    "shard": ("../data", "train-000000.tar", ("01/evaluation",), lambda run: evaluate_round(run, 1, World())),
}


def _train(run, number):
    shutil.rmtree(RunLayout(run).round(number).checkpoints, ignore_errors=True)
    train_round(run, number, World())


@pytest.fixture(scope="module")
def whole(tmp_path_factory, digits):
    """A folder with a data set and a run of two rounds on it; copied before use."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(digits.root, folder / "data")
    layout = start_run(folder / "run", digits, **ONE)
    for number in (0, 1):
        if number:
            rebuild_index(layout.root, number)
        train_round(layout.root, number, World())
        evaluate_round(layout.root, number, World())
    return folder


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("reader", READERS)
def test_damage_is_named_by_whoever_reads_and_nothing_is_published(whole, tmp_path, reader, damage):
    artefact, pattern, again, read = READERS[reader]
    run = _copy(whole, tmp_path)
    for name in again:
        shutil.rmtree(run / "rounds" / name)
    path = sorted((run / artefact).resolve().glob(pattern))[0]
    DAMAGES[damage](path)
    before = {p for p in run.rglob("manifest.json") if "checkpoints" not in p.parts}
    with pytest.raises(RunError) as refusal:
        read(run)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert {p for p in run.rglob("manifest.json") if "checkpoints" not in p.parts} == before


def _copy(whole, folder):
    """The run, with the data set's copy beside it as its own."""
    shutil.copytree(whole, folder / "whole")
    record = folder / "whole" / "run" / "run.json"
    values = json.loads(record.read_text())
    values["dataset"]["root"] = str(folder / "whole" / "data")
    record.write_text(json.dumps(values))
    return folder / "whole" / "run"


def test_the_readers_read_what_is_not_damaged(whole, tmp_path):
    run = _copy(whole, tmp_path)
    for _, _, again, read in READERS.values():
        for name in again:
            shutil.rmtree(run / "rounds" / name, ignore_errors=True)
        read(run)
