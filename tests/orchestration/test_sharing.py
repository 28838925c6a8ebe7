import json
import shutil

import pytest

from andscale.config_file import load_config
from andscale.distributed import World
from andscale.errors import RunError, UsageError
from andscale.evaluation.evaluate import evaluate_round
from andscale.indexing.rebuild import rebuild_index
from andscale.metrics import read_metrics
from andscale.orchestration.launch import LaunchRequest
from andscale.orchestration.sharing import adopt_initialisation, initialisation_digest
from andscale.orchestration.steps import Step, is_done, pending_steps, stale_parent
from andscale.store.artifacts import load_manifest, verify
from andscale.store.files import hash_bytes
from andscale.store.run_layout import RunLayout
from andscale.store.run_record import create_run, load_run
from andscale.training.loop import train_round
from crashing import crash_at_every_call
from tiny_runs import assert_same_state, trained_state
from whole_runs import write_config

AND = ("method.num_neighbours=3", "method.num_rounds=2", "index.kind=flat", "evaluation.num_neighbours=7")


@pytest.fixture(scope="module")
def config(tmp_path_factory, digits):
    path = write_config(tmp_path_factory.mktemp("config"), digits)
    text = path.read_text().replace("301", "143").replace("num_epochs = 3", "num_epochs = 2")
    path.write_text(text.replace("tasks_per_node = 2", "tasks_per_node = 1"))
    return path


@pytest.fixture(scope="module")
def donor(tmp_path_factory, config, digits):
    """A finished round 0 of the baseline of instances."""
    root = tmp_path_factory.mktemp("donor") / "instances"
    request = LaunchRequest(root, config=config, overrides=("method.name=instance",))
    _train(root, request, digits)
    return root


def _train(root, request, digits):
    create_run(root, load_config(request.config, list(request.overrides)), digits.root, digits.fingerprint)
    train_round(root, 0, World())
    return RunLayout(root)


def _go_on(layout):
    rebuild_index(layout.root, 1)
    train_round(layout.root, 1, World())
    evaluate_round(layout.root, 1)


def test_a_run_that_took_over_round_0_ends_as_if_it_had_trained_it(tmp_path, config, donor, digits):
    request = LaunchRequest(tmp_path / "taken", config=config, overrides=AND)
    assert adopt_initialisation(donor, request)
    taken, own = RunLayout(request.run), _train(tmp_path / "own", request, digits)
    method = load_run(request.run).config.method
    assert is_done(taken, Step("train", 0))
    assert pending_steps(taken, range(1, 2), method)[0] == Step("index", 1)
    for layout in (taken, own):
        _go_on(layout)
    for number in (0, 1):
        assert_same_state(trained_state(taken, number), trained_state(own, number))
    results = [json.loads((x.round(1).evaluation / "evaluation.json").read_text()) for x in (taken, own)]
    assert results[0] == results[1]
    losses = [[r["loss"] for r in read_metrics(x.round(0).metrics)] for x in (taken, own)]
    assert losses[0] == losses[1] and len(losses[0]) == 2
    # other artefacts as they are: the same digests, so neither run's later steps are stale beside the other's files
    manifests = [json.loads((x.round(0).memory / "manifest.json").read_text()) for x in (taken, own)]
    assert manifests[0]["config_hash"] == manifests[1]["config_hash"] == load_run(request.run).config.digest()
    assert manifests[0]["files"] == manifests[1]["files"]
    assert manifests[0]["figures"]["num_epochs"] == 2
    assert manifests[0]["figures"]["adopted_from"]["run"] == "instances"
    assert stale_parent(taken, Step("train", 1)) is None


def test_what_was_taken_over_twice_names_who_trained_it_for_how_long_and_with_which_commit(tmp_path, config, donor):
    shutil.copytree(donor, tmp_path / "instances")
    for kind in ("model", "memory"):  # neither is in the digest
        path = tmp_path / "instances" / "rounds" / "00" / kind / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"commit": "c0ffee", "seconds": 1234.5}))
    giver, taken = tmp_path / "instances", []
    for name in ("first", "second"):
        assert adopt_initialisation(giver, LaunchRequest(tmp_path / name, config=config, overrides=AND))
        giver = tmp_path / name
        taken.append(load_manifest(giver / "rounds" / "00" / "model", "model").figures["adopted_from"])
    digest = load_manifest(tmp_path / "instances" / "rounds" / "00" / "model", "model").digest
    assert taken[0] == {"run": "instances", "digest": digest, "seconds": 1234.5, "commit": "c0ffee"}
    assert taken[1] == taken[0]


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ((), AND, True),
        (("method.name=instance",), AND, True),
        (("method.name=instance", "method.temperature=0.2"), AND, False),
        (("method.memory_momentum=0.4",), (), False),
        (("seed=1",), (), False),
        (("optim.num_epochs=9",), (), False),
        (("data.max_train_samples=100",), (), False),
        (("storage.feature_dtype=float16",), (), False),
        (("method.name=supervised",), (), False),
        (("method.name=random",), (), False),
        (("method.name=random", "optim.num_epochs=9"), ("method.initialisation=random",), True),
        (("method.memory_start=features",), (), False),
        (("method.memory_start=features", "method.name=instance"), ("method.memory_start=features", *AND), True),
        (("method.memory_start=features", "evaluation.batch_size=7"), ("method.memory_start=features",), False),
        (("method.initialisation=random", "model.feature_dim=8"), ("method.initialisation=random",), False),
    ],
)
def test_what_round_0_does_not_depend_on_does_not_matter(config, one, other, alike):
    first, second = (initialisation_digest(load_config(config, list(settings))) for settings in (one, other))
    assert (first == second) is alike


def test_runs_that_do_not_fit_are_refused_with_what_differs_and_nothing_is_written(tmp_path, config, donor):
    request = LaunchRequest(tmp_path / "other", config=config, overrides=("seed=3", "optim.num_epochs=4"))
    with pytest.raises(UsageError, match=r"optim.num_epochs: 2 and 4; seed: 0 and 3\): round 0 cannot be shared"):
        adopt_initialisation(donor, request)
    assert not request.run.exists()


def test_a_donor_without_round_0_is_named(tmp_path, config, digits):
    empty = tmp_path / "half"
    create_run(empty, load_config(config), digits.root, digits.fingerprint)
    with pytest.raises(UsageError, match="has no model of round 0 to share"):
        adopt_initialisation(empty, LaunchRequest(tmp_path / "new", config=config))


def test_another_data_set_is_refused(tmp_path, config, donor):
    shutil.copytree(donor, tmp_path / "donor")
    record = json.loads((tmp_path / "donor" / "run.json").read_text())
    record["dataset"]["fingerprint"] = "0" * 64
    (tmp_path / "donor" / "run.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match="different data sets"):
        adopt_initialisation(tmp_path / "donor", LaunchRequest(tmp_path / "new", config=config, overrides=AND))


def test_a_damaged_donor_is_found_by_its_hashes_and_nothing_of_it_appears(tmp_path, config, donor):
    shutil.copytree(donor, tmp_path / "donor")
    path = tmp_path / "donor" / "rounds" / "00" / "memory" / "features-00000-of-00001.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(RunError, match="features-00000-of-00001.parquet does not have the hash"):
        adopt_initialisation(tmp_path / "donor", LaunchRequest(tmp_path / "new", config=config, overrides=AND))
    assert not (tmp_path / "new" / "rounds" / "00" / "memory").exists()


def test_a_run_that_has_begun_its_own_round_0_is_left_alone(tmp_path, config, donor, digits):
    request = LaunchRequest(tmp_path / "own", config=config, overrides=AND)
    own = _train(request.run, request, digits)
    shutil.rmtree(own.round(0).memory)
    shutil.rmtree(own.round(0).checkpoints)
    before = sorted(path for path in own.rounds.rglob("*"))
    assert not adopt_initialisation(donor, request)
    assert sorted(path for path in own.rounds.rglob("*")) == before


def test_killed_at_any_moment_it_can_be_called_again(tmp_path, config, donor, monkeypatch):
    # the threads that hash large files do not live on in a forked child
    monkeypatch.setattr("andscale.store.artifacts.hash_file", lambda path: hash_bytes(path.read_bytes()))
    request = LaunchRequest(tmp_path / "run", config=config, overrides=AND)
    layout = RunLayout(request.run)

    def check():
        # what the next call finds is nothing, or whole artefacts
        for folder in (layout.round(0).model, layout.round(0).memory):
            assert not folder.exists() or (folder / "manifest.json").is_file()
        adopt_initialisation(donor, request)
        assert is_done(layout, Step("train", 0))
        for name in ("model", "memory"):
            verify(layout.root / "rounds" / "00" / name, name)
        shutil.rmtree(request.run)

    assert crash_at_every_call(lambda: adopt_initialisation(donor, request), check) > 20
