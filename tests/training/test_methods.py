import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch

from andscale.cli import call
from andscale.data.reader import SplitReader
from andscale.data.shards import load_catalogue
from andscale.distributed import World
from andscale.errors import UsageError
from andscale.metrics import read_metrics
from andscale.orchestration import local
from andscale.orchestration.jobs import run_step
from andscale.store import artifacts
from andscale.store.features import read_features
from andscale.store.run_layout import RunLayout
from andscale.store.run_record import load_run
from andscale.training import loop
from andscale.training.backbones import build_backbone, load_weights
from andscale.training.inputs import load_inputs
from andscale.training.start import open_reader, start
from andscale.training.stopping import StopSignals
from andscale.training.supervised import training_labels
from tiny_runs import assert_same_state, start_run, trained_state
from whole_runs import CONFIG

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def launched(tmp_path, digits, monkeypatch, capsys):
    """Launches a tiny run, its steps in this process; gives its layout and what was printed."""
    config = CONFIG.format(dataset=digits.root).replace("num_epochs = 3", "num_epochs = 2")
    (tmp_path / "tiny.toml").write_text(config.replace("max_train_samples = 301", "max_train_samples = 200"))
    monkeypatch.chdir(tmp_path)
    steps = []

    def run_here(layout, pending, config):
        for step in pending:
            run_step(layout.root, step, World(), StopSignals(), config)
            steps.append(str(step))

    monkeypatch.setattr(local, "run_steps", run_here)

    def launch(name, rounds, *arguments):
        steps.clear()
        arguments = ["--config", "tiny.toml", "--run", name, "--cluster", "local", "--rounds", rounds, *arguments]
        assert call("launch", arguments) == 0, capsys.readouterr().err
        return RunLayout(tmp_path / name), list(steps), capsys.readouterr().out

    return launch


def test_every_method_goes_through_the_launcher_to_its_table(launched, digits, capsys):
    first = {}
    for name in ("instance", "supervised", "deepcluster", "nat"):
        layout, steps, output = launched(name, "0-1", "--method", name, "--set", "method.num_clusters=20")
        assert steps == ["train round 0", "evaluate round 0", "train round 1", "evaluate round 1"]
        parents = artifacts.load_manifest(layout.round(1).model, "model").provenance.parents
        assert set(parents) == {"dataset", "rounds/00/memory", "rounds/00/model"}
        assert "round 1 is complete" in output
        losses = [r["loss"] for number in (0, 1) for r in read_metrics(layout.round(number).metrics)]
        # DeepCluster's classes change, and noise that is a sample's own is learnt faster the first time
        assert losses[-1] < losses[0] or name in ("deepcluster", "nat")
        first[name] = trained_state(layout, 0)
        assert set(first[name][0]) == set(build_backbone(_config(layout).model, 0).state_dict()), "no classifier"
    for one, other in itertools.combinations(first, 2):
        assert (first[one][1] != first[other][1]).any(), (one, other)
    layout = RunLayout(layout.root.with_name("supervised"))
    figures = json.loads((layout.round(1).evaluation / "evaluation.json").read_text())
    assert figures["accuracy"] > figures.get("random_weights_accuracy", 0.3)
    assert call("inspect", ["--run", "supervised"]) == 2
    assert "supervised has no neighbourhoods: method.name = supervised finds none" in capsys.readouterr().err

    random, steps, _ = launched("random", "0-0", "--method", "random")
    assert steps == ["train round 0", "evaluate round 0"]
    assert not random.round(0).checkpoints.exists()
    _assert_untrained(random, digits)

    layout, steps, output = launched("late", "0-1", "--set", "method.initialisation=random")
    assert steps[2:] == ["index round 1", "train round 1", "evaluate round 1"]
    assert_same_state(trained_state(layout, 0), trained_state(random, 0))
    assert len(read_metrics(layout.round(1).metrics)) == 2
    assert call("inspect", ["--run", "late"]) == 0


def _config(layout):
    return load_run(layout.root).config


def _assert_untrained(layout, digits):
    """First weights, and a memory of their features."""
    config = _config(layout)
    network = build_backbone(config.model, config.seed, config.data.image_size)
    for name, values in trained_state(layout, 0)[0].items():
        np.testing.assert_array_equal(values, network.state_dict()[name], err_msg=name)
    load_weights(layout.round(0).model, network)
    reader = SplitReader(digits, "train", config.data, torch.device("cpu"), config.data.max_train_samples)
    with torch.inference_mode():
        features = torch.cat([network.eval()(images) for images in reader.in_order(100)])
    np.testing.assert_allclose(read_features(layout.round(0).memory)[0], features, atol=1e-5)


@pytest.mark.parametrize("rank", [0, 1])
def test_the_memory_may_start_as_features_of_the_first_weights(tmp_path, digits, rank):
    layout = start_run(tmp_path, digits, method={"memory_start": "features"})
    record = load_run(layout.root)
    reader = open_reader(record, torch.device("cpu"))
    network = build_backbone(record.config.model, record.config.seed, record.config.data.image_size)
    with torch.inference_mode():
        features = torch.cat([network.eval()(images) for images in reader.in_order(100)])
    inputs = load_inputs(record, layout, 0, reader.num_samples)
    memory = start(record.config, 0, inputs, reader, World(rank, 2)).memory
    torch.testing.assert_close(memory.values, features[memory.rows.start : memory.rows.stop], atol=1e-5, rtol=0)


def test_a_round_that_starts_from_features_trains_and_the_next_one_goes_on_from_its_memory(tmp_path, digits):
    settings = {"method": {"name": "instance"}, "optim": {"num_epochs": 2}}
    noise = start_run(tmp_path / "noise", digits, **settings)
    settings["method"] |= {"memory_start": "features"}
    layout = start_run(tmp_path / "features", digits, **settings)
    for run in (noise, layout):
        loop.train_round(run.root, 0, World())
    from_noise, from_features = (read_metrics(run.round(0).metrics)[0]["loss"] for run in (noise, layout))
    assert from_features < from_noise, "a sample's own row tells nothing where it is noise"
    record = load_run(layout.root)
    reader = open_reader(record, torch.device("cpu"))
    state = start(record.config, 1, load_inputs(record, layout, 1, reader.num_samples), reader, World())
    np.testing.assert_array_equal(state.memory.values, read_features(layout.round(0).memory)[0])


def test_a_supervised_round_that_was_stopped_ends_bit_for_bit_like_one_that_was_not(tmp_path, digits, monkeypatch):
    settings = {"method": {"name": "supervised"}, "optim": {"num_epochs": 2, "accumulation_steps": 2}}
    whole, stopped = (start_run(tmp_path / name, digits, **settings) for name in ("a", "b"))
    loop.train_round(whole.root, 0, World())
    save = loop.save_checkpoint

    def save_and_die(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "save_checkpoint", save_and_die)
        loop.train_round(stopped.root, 0, World())
    loop.train_round(stopped.root, 0, World())
    assert_same_state(trained_state(whole, 0), trained_state(stopped, 0))
    last = [torch.load(x.round(0).checkpoints / "epoch-0002" / "state.pt", weights_only=True) for x in (whole, stopped)]
    assert last[0]["model"].keys() == last[1]["model"].keys() > {"classifier.weight", "classifier.bias"}
    for name, values in last[0]["model"].items():
        assert values.equal(last[1]["model"][name]), name


def test_a_supervised_run_without_all_labels_is_refused_in_one_line(digits):
    catalogue = load_catalogue(digits, "train", 20)
    assert training_labels(catalogue).tolist() == catalogue.labels.tolist()
    labels = catalogue.labels.copy()
    labels[[3, 5]] = -1
    with pytest.raises(UsageError, match="needs a label for every training image, and 2 of 20 have none"):
        training_labels(dataclasses.replace(catalogue, labels=labels))


def test_there_is_nothing_to_train_after_random_weights(tmp_path, digits):
    layout = start_run(tmp_path / "run", digits, method={"name": "random"})
    with pytest.raises(UsageError, match="method.name = random has no round 1: there is nothing to train"):
        loop.train_round(layout.root, 1, World())
