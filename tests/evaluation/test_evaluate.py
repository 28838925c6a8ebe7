import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from andscale.audit.tables import run_table
from andscale.config_resources import ResourcesConfig
from andscale.data.prepare import PrepareOptions, prepare
from andscale.data.reader import SplitReader
from andscale.data.shards import load_catalogue
from andscale.distributed import World
from andscale.errors import RunError, UsageError
from andscale.evaluation.embed import share_of_rank
from andscale.evaluation.evaluate import evaluate_round
from andscale.evaluation.knn import weighted_knn
from andscale.evaluation.record import FILE_NAME, KIND, read_evaluation
from andscale.store import artifacts
from andscale.store.features import read_features
from andscale.store.run_layout import RunLayout
from andscale.training.backbones import build_backbone, load_weights
from andscale.training.loop import train_round
from ranks import run_ranks
from tiny_runs import digits_config, start_run
from whole_runs import run_command

SECTIONS = {
    "data": {"max_train_samples": 301, "max_val_samples": 130},
    "augment": {"min_crop_scale": 0.8, "flip_probability": 0.0},
    "optim": {"num_epochs": 1},
    "evaluation": {"batch_size": 40, "linear_epochs": 3, "linear_batch_size": 50, "linear_learning_rate": 0.02},
}


def _trained(root, prepared, **sections):
    layout = start_run(root, prepared, **(SECTIONS | sections))
    train_round(root, 0, World())
    return layout


@pytest.fixture(scope="module")
def trained(tmp_path_factory, digits):
    """A run whose round 0 is trained and not evaluated; read only."""
    return _trained(tmp_path_factory.mktemp("trained") / "run", digits)


def _copy(layout, folder):
    shutil.copytree(layout.root, folder)
    return RunLayout(folder)


def _evaluate(world, root):
    evaluate_round(root, 0, world)


def _read(layout):
    return read_evaluation(layout.round(0).evaluation)


@pytest.fixture(scope="module")
def evaluations(trained, tmp_path_factory):
    """The evaluation of one round by 1, 2 and 3 ranks: world size -> (record, manifest)."""
    found = {}
    for world_size in (1, 2, 3):
        layout = _copy(trained, tmp_path_factory.mktemp("evaluated") / "run")
        run_ranks(_evaluate, world_size, layout.root, grouped=False)
        found[world_size] = _read(layout)
    return found


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_together_measure_what_one_does(evaluations, world_size):
    (alone, _), (together, manifest) = evaluations[1], evaluations[world_size]
    assert manifest.figures["world_size"] == world_size
    assert together["linear"].keys() == alone["linear"].keys()
    for name, record in alone["linear"].items():
        other = together["linear"][name]
        assert other["train_loss"] == pytest.approx(record["train_loss"], rel=1e-4)
        for key in ("top1", "top5"):  # a logit may round to the other side
            assert other[key] == pytest.approx(record[key], abs=2 / 130)
    assert together | {"linear": {}} == alone | {"linear": {}}, "kNN and every setting are the same"


def test_the_record_names_what_moves_the_number(evaluations, trained):
    record, manifest = evaluations[1]
    assert list(record["knn"]) == ["1", "5", "20", "200"]
    assert record["accuracy"] == record["knn"]["200"]["top1"]
    assert [r["num_voters"] for r in record["knn"].values()] == [1, 5, 20, 200]
    assert (record["num_train"], record["num_val"], record["num_classes"]) == (301, 130, 10)
    expected = {
        "round": 0, "method": "weighted kNN", "num_neighbours": 200, "temperature": 0.07, "layer": "embedding",
        "training_features": "recomputed", "split": "val", "image_size": 8, "precision": "float32",
    }  # fmt: skip
    assert {key: record[key] for key in expected} == expected
    assert record["training_method"]["temperature"] == 0.1
    linear = record["linear_settings"]
    assert {key: linear[key] for key in ("epochs", "batch_size", "learning_rate", "momentum", "weight_decay")} == {
        "epochs": 3, "batch_size": 50, "learning_rate": 0.02, "momentum": 0.9, "weight_decay": 1e-4,
    }  # fmt: skip
    assert linear["augmentation"] == {"min_crop_scale": 0.8, "flip_probability": 0.0, "colours": "unchanged"}
    assert record["linear"]["conv1"]["pooled"] == [32, 4, 4]
    model = artifacts.load_manifest(trained.round(0).model, "model")
    assert manifest.provenance.parents == {"rounds/00/model": model.digest}


def test_the_accuracy_is_that_of_the_voting_rule(evaluations, trained, digits):
    found = _votes(trained, digits, None)
    assert evaluations[1][0]["accuracy"] == found[200]
    assert evaluations[1][0]["knn"]["5"]["top1"] == found[5]


def _votes(layout, data, memory):
    """Top-1 accuracies at K = 5 and 200 of features that are embedded here, or of a memory against them."""
    config = digits_config(data, **SECTIONS)
    network = build_backbone(config.model, 0, config.data.image_size)
    load_weights(layout.round(0).model, network)
    network.eval()
    features, labels = {}, {}
    for split, limit in (("train", 301), ("val", 130)):
        reader = SplitReader(data, split, config.data, torch.device("cpu"), limit)
        with torch.inference_mode():
            features[split] = torch.cat([network(images) for images in reader.in_order(97)]).numpy()
        labels[split] = reader.catalogue.labels
    train = features["train"] if memory is None else memory
    tops = weighted_knn(train, labels["train"], features["val"], (5, 200), 0.07)
    return {k: float((top[:, 0] == labels["val"]).mean()) for k, top in tops.items()}


def test_a_rank_without_a_batch_waits_for_the_others(digits, tmp_path):
    data = SECTIONS["data"] | {"in_memory_bytes": 0, "num_workers": 1}
    layout = _trained(tmp_path / "run", digits, data=data, evaluation={"batch_size": 500})
    run_ranks(_evaluate, 2, layout.root, grouped=False)
    assert _read(layout)[0]["accuracy"] == _votes(layout, digits, None)[200]


def test_the_memory_votes_where_the_config_says_so(digits, tmp_path):
    layout = start_run(
        tmp_path / "run", digits, **(SECTIONS | {"evaluation": {"batch_size": 40, "features": "memory"}})
    )
    train_round(layout.root, 0, World())
    run_ranks(_evaluate, 2, layout.root, grouped=False)
    record, manifest = _read(layout)
    memory, memory_manifest = read_features(layout.round(0).memory)
    found = _votes(layout, digits, memory)
    assert (record["knn"]["5"]["top1"], record["accuracy"]) == (found[5], found[200])
    assert found != _votes(layout, digits, None), "recomputed features vote otherwise"
    assert record["training_features"] == "memory"
    assert record["features"].startswith("embedding: the round's memory for the training split")
    assert manifest.provenance.parents["rounds/00/memory"] == memory_manifest.digest
    assert record["linear"] == {}, "0 epochs: no linear classifiers"


def test_a_memory_that_is_damaged_or_gone_is_refused(digits, tmp_path):
    layout = start_run(tmp_path / "run", digits, **(SECTIONS | {"evaluation": {"features": "memory"}}))
    train_round(layout.root, 0, World())
    (path,) = layout.round(0).memory.glob("*.parquet")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(RunError, match=path.name):
        evaluate_round(layout.root, 0)
    shutil.rmtree(layout.round(0).memory)
    with pytest.raises(UsageError, match="round 0 has no memory: run --round 0 first"):
        evaluate_round(layout.root, 0)
    assert not layout.round(0).evaluation.exists()


def test_k_above_n_is_recorded(digits, tmp_path):
    sections = {"data": {"max_train_samples": 60, "max_val_samples": 50}, "evaluation": {"num_neighbours": 70}}
    layout = _trained(tmp_path / "run", digits, **sections)
    evaluate_round(layout.root, 0)
    record, _ = _read(layout)
    assert {k: r["num_voters"] for k, r in record["knn"].items()} == {"1": 1, "5": 5, "20": 20, "70": 60, "200": 60}
    assert record["knn"]["70"] == record["knn"]["200"]
    assert record["accuracy"] == record["knn"]["70"]["top1"]


def test_without_a_validation_split_there_is_no_accuracy_and_a_reason(tmp_path, rng):
    (tmp_path / "raw").mkdir()
    for i in range(24):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / "raw" / f"{i}.png")
    prepared = prepare("image-folder", tmp_path / "raw", tmp_path / "prepared", PrepareOptions(num_workers=1))
    limits = {"max_train_samples": None, "max_val_samples": None}
    layout = _trained(tmp_path / "run", prepared, data=limits, optim={"num_epochs": 1, "global_batch_size": 12})
    evaluate_round(layout.root, 0)
    record, _ = _read(layout)
    assert (record["accuracy"], record["reason"]) == (None, "the data set has no validation split")
    assert record["knn"] == record["linear"] == {}
    assert "random_weights_accuracy" not in record


def test_samples_without_labels_give_no_accuracy(trained, tmp_path, monkeypatch):
    layout = _copy(trained, tmp_path / "run")

    def without_one_label(dataset, split, limit, **how):
        catalogue = load_catalogue(dataset, split, limit, **how)
        labels = catalogue.labels.copy()
        labels[3] = -1
        object.__setattr__(catalogue, "labels", labels)
        return catalogue

    monkeypatch.setattr("andscale.data.reader.load_catalogue", without_one_label)
    evaluate_round(layout.root, 0)
    assert _read(layout)[0]["reason"] == "the data set has samples without a label"


def test_features_that_are_not_finite_are_refused(trained, tmp_path, monkeypatch):
    layout = _copy(trained, tmp_path / "run")

    def broken(folder, network):
        torch.nn.init.constant_(next(network.parameters()), float("nan"))

    monkeypatch.setattr("andscale.evaluation.evaluate.load_weights", broken)
    with pytest.raises(RunError, match="training split: features of 301 samples"):
        evaluate_round(layout.root, 0)
    assert not layout.round(0).evaluation.exists()


def test_the_door_evaluates_once(trained, tmp_path):
    layout = _copy(trained, tmp_path / "run")
    arguments = ("--run", layout.root, "--round", "0")
    output = run_command(*arguments, cwd=tmp_path, door="jobs/evaluate_round.py")
    record, _ = _read(layout)
    assert f"weighted-kNN accuracy {record['accuracy']:.4f} (random weights: " in output
    assert f"; linear: conv1 {record['linear']['conv1']['top1']:.4f}, conv2 " in output
    assert record["linear"]["conv1"]["top1"] > 0.5
    again = run_command(*arguments, cwd=tmp_path, door="jobs/evaluate_round.py")
    assert "round 0 is evaluated already" in again
    best = max(record["linear"].items(), key=lambda item: item[1]["top1"])
    table = run_table(layout.root)
    assert "best linear accuracy" in table
    assert f"{best[0]} {best[1]['top1']:.4f}" in table


def _publish(layout, record):
    provenance = artifacts.Provenance("0", {})
    shutil.rmtree(layout.round(0).evaluation, ignore_errors=True)
    with artifacts.publish(layout.round(0).evaluation, kind=KIND, provenance=provenance) as draft:
        draft.path(FILE_NAME).write_text(record if isinstance(record, str) else json.dumps(record))
        draft.add(FILE_NAME)


def test_records_from_before_are_read(trained, tmp_path):
    layout = _copy(trained, tmp_path / "run")
    _publish(layout, {"round": 0, "method": "weighted kNN", "accuracy": 0.5, "random_weights_accuracy": 0.25})
    assert _read(layout)[0] == {
        "round": 0, "method": "weighted kNN", "accuracy": 0.5, "random_weights_accuracy": 0.25, "knn": {}, "linear": {}
    }  # fmt: skip
    table = run_table(layout.root)
    assert "0.5000" in table
    assert "linear" not in table


@pytest.mark.parametrize(
    "record",
    [
        "{",
        "[]",
        {},
        {"accuracy": "0.5"},
        {"accuracy": 1.5},
        {"accuracy": 0.5, "random_weights_accuracy": None},
        {"accuracy": 0.5, "knn": {"1": {"top1": 0.5}}},
        {"accuracy": 0.5, "knn": {"1": {"top1": 0.5, "top5": 2}}},
        {"accuracy": 0.5, "linear": [1]},
        {"accuracy": 0.5, "linear": {"conv1": None}},
    ],
)
def test_records_that_are_none_are_refused(tmp_path, record):
    layout = RunLayout(tmp_path)
    _publish(layout, record)
    with pytest.raises(RunError, match="is not an evaluation of ours, or it is damaged"):
        _read(layout)


@pytest.mark.parametrize(("num_samples", "batch_size"), [(1, 500), (130, 40), (120, 40), (1000, 1), (7, 3)])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_shares_are_whole_batches_of_one_grid(num_samples, batch_size, world_size):
    shares = [share_of_rank(num_samples, batch_size, rank, world_size) for rank in range(world_size)]
    assert [i for share in shares for i in share] == list(range(num_samples))
    assert all(share.start % batch_size == 0 or not share for share in shares)
    batches = [-(-len(share) // batch_size) for share in shares]
    assert max(batches) - min(batches) <= 1


def test_the_evaluation_job_has_a_size_of_its_own():
    resources = ResourcesConfig(tasks_per_node=4, evaluate_num_nodes=2, evaluate_tasks_per_node=8)
    assert resources.job_size("evaluate") == (2, 8)
    assert ResourcesConfig(tasks_per_node=4, num_nodes=3).job_size("evaluate") == (1, 1)
