"""ImageNet's original archives, tiny, to two rounds of AlexNet on two ranks: every command as a user types it."""

import json

import numpy as np
import pytest
import torch

import andscale
from andscale.store.features import read_features
from andscale.store.neighbourhoods import read_table
from andscale.store.run_layout import RunLayout
from synthetic_sources import write_imagenet_tars
from whole_runs import run_command

CONFIG = """\
[data]
dataset = "data/imagenet"
image_size = 96
[model]
backbone = "alexnet"
stem = "imagenet"
[optim]
num_epochs = 1
global_batch_size = 16
[index]
check_rows = 10
[evaluation]
linear_epochs = 1
linear_batch_size = 16
[resources]
tasks_per_node = 2
evaluate_tasks_per_node = 2
gpus_per_node = 0
timeout_min = 20
"""
pytestmark = pytest.mark.timeout(600)  # AlexNet has 60 million weights
LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "embedding")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with archives, shards and a run of two rounds; and the archives' content."""
    folder = tmp_path_factory.mktemp("imagenet")
    (folder / "archives").mkdir()
    content = write_imagenet_tars(folder / "archives")
    run_command("imagenet", "archives", "data/imagenet", cwd=folder, door="tools/prepare_shards.py")
    (folder / "alexnet.toml").write_text(CONFIG)
    output = run_command("--rounds", "0-1", "--config", "alexnet.toml", "--cluster", "local", cwd=folder)
    assert "round 1 is complete" in output
    return folder, content


def test_two_rounds_from_the_original_archives(finished):
    folder, content = finished
    layout = RunLayout(folder / "runs" / "alexnet")
    num_train = len(content["train"])
    for number in (0, 1):
        memory, manifest = read_features(layout.round(number).memory)
        assert memory.shape == (num_train, 128)
        assert manifest.figures["world_size"] == 2
    table, _ = read_table(layout.round(1).neighbourhoods)
    assert table.is_anchor.sum() == num_train // 4
    assert (table.neighbour_ids[:, 0] != np.arange(num_train)).all()


def test_the_evaluation_covers_every_layer_and_every_k(finished):
    folder, content = finished
    for number in (0, 1):
        path = RunLayout(folder / "runs" / "alexnet").round(number).evaluation / "evaluation.json"
        result = json.loads(path.read_text())
        assert tuple(result["linear"]) == LAYERS
        for figures in (*result["linear"].values(), *result["knn"].values()):
            hits = figures["top1"] * len(content["val"])
            assert hits == pytest.approx(round(hits))
            assert 0 <= figures["top1"] <= figures["top5"] <= 1
        assert all(figures["top5"] == 1 for figures in result["linear"].values()), "four classes, five guesses"
        assert set(result["knn"]) == {"1", "5", "20", "200"}


def test_the_model_opens_in_two_lines_and_gives_the_features_that_were_evaluated(finished):
    folder, content = finished
    network, transform = andscale.load_model(folder / "runs" / "alexnet")
    embedded = {
        split: network(torch.stack([transform(data) for data, _ in samples])).detach().numpy()
        for split, samples in content.items()
    }
    labels = {split: np.array([label for _, label in samples]) for split, samples in content.items()}
    nearest = (embedded["val"] @ embedded["train"].T).argmax(axis=1)
    path = RunLayout(folder / "runs" / "alexnet").round(1).evaluation / "evaluation.json"
    top1 = (labels["train"][nearest] == labels["val"]).mean()
    assert json.loads(path.read_text())["knn"]["1"]["top1"] == pytest.approx(top1)
