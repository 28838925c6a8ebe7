import json
from pathlib import Path

import pytest

from andscale.config_file import (
    apply_overrides,
    build_config,
    config_differences,
    find_config,
    load_config,
    packaged_configs,
)
from andscale.errors import UsageError

MINIMAL = {"data": {"dataset": "data/x"}}


def test_the_defaults_are_the_published_settings():
    config = build_config(MINIMAL, "test")
    assert (config.method.num_rounds, config.method.num_neighbours) == (4, 1)
    assert (config.method.temperature, config.method.memory_momentum) == (0.1, 0.5)
    assert (config.optim.learning_rate, config.optim.momentum, config.optim.weight_decay) == (0.03, 0.9, 5e-4)
    assert (config.optim.num_epochs, config.optim.global_batch_size) == (200, 128)
    assert (config.optim.first_decay_epoch, config.optim.decay_every_epochs, config.optim.decay_factor) == (80, 40, 0.1)
    assert config.model.feature_dim == 128
    assert (config.evaluation.num_neighbours, config.evaluation.temperature) == (200, 0.07)
    assert config.storage.feature_dtype == "float32"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"dataset": "x", "imagesize": 3}}, "unknown key data.imagesize; valid here: cache_bytes, cache_dir"),
        ({"optm": {}}, "unknown key optm; valid here: augment, data, "),
        ({"method": {"temperature": 0}}, "method.temperature = 0: Input should be greater than 0"),
        ({"method": {"temperature": float("nan")}}, "method.temperature = NaN: Input should be a finite number"),
        ({"optim": {"num_epochs": "3"}}, 'optim.num_epochs = "3": Input should be a valid integer'),
        ({"resources": {"tasks_per_node": 33}}, "is too small for 33 ranks: it must be at least 131"),
        ({"data": {}}, "data.dataset is missing"),
        (
            {"model": {"backbone": "resnet19"}},
            "model.backbone = \"resnet19\": choose one of 'small_resnet', 'alexnet',",
        ),
        ({"model": {"backbone": "timm:"}}, "or 'timm:NAME'"),
        ({"model": {"backbone": "timm:hf-hub:timm/resnet18"}}, "or 'timm:NAME'"),
        ({"model": {"backbone": "timm:resnet18\n"}}, "or 'timm:NAME'"),
        ({"model": {"backbone": "timm:resnet18", "stem": "imagenet"}}, "timm:resnet18 has a stem of its own"),
        ({"model": {"backbone": "alexnet", "stem": "imagenet"}}, "data.image_size = 32 is too small for alexnet"),
        (
            {"slurm": {"train": {"partion": "x"}}},
            "unknown key slurm.train.partion; valid here: account, additional, con",
        ),
        ({"slurm": {"partion": "x"}}, "qos, setup, srun_args, timeout_min, train"),
        ({"resources": {"partition": "x"}}, "unknown key resources.partition; valid here: checkpoint_min, cpus"),
        ({"slurm": {"partition": "a\n#SBATCH -x"}}, 'slurm.partition = "a\\n#SBATCH -x": it must be one line'),
        ({"slurm": {"index": {"setup": ["a\nb"]}}}, "slurm.index.setup.0 = "),
        ({"slurm": {"additional": {"job-name": "x"}}}, "'job-name' is set by andscale; what it sets itself: array, "),
        ({"slurm": {"additional": {"partition": "x"}}}, "'partition' has a setting of its own here: partition"),
        ({"slurm": {"additional": {"x\n#SBATCH": 1}}}, "is not a long option of sbatch"),
        ({"slurm": {"additional": {"nice": "1\n#"}}}, "it must be one line"),
        ({"slurm": {"additional": {"nice": False}}}, "'nice' takes a text, a number, or true"),
        ({"storage": {"feature_dtype": "int8"}}, "storage.feature_dtype = \"int8\": Input should be 'float32' or"),
    ],
)
def test_mistakes_are_named_with_their_place(change, message):
    with pytest.raises(UsageError) as caught:
        build_config(MINIMAL | change, "my.toml")
    assert str(caught.value).startswith("my.toml: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_config_cannot_be_changed():
    with pytest.raises(Exception, match="frozen"):
        build_config(MINIMAL, "test").method.temperature = 0.2


def test_overrides_are_read_as_toml_values():
    values = apply_overrides(
        MINIMAL, ["optim.num_epochs=3", "model.backbone=resnet50", "data.max_train_samples=none", "seed=7"]
    )
    config = build_config(values, "test")
    assert (config.optim.num_epochs, config.model.backbone, config.seed) == (3, "resnet50", 7)
    assert config.data.max_train_samples is None
    assert MINIMAL == {"data": {"dataset": "data/x"}}


@pytest.mark.parametrize("override", ["seed", "=3", ".x=3", "data.dataset.x=3"])
def test_malformed_overrides_are_refused(override):
    with pytest.raises(UsageError, match="--set"):
        apply_overrides(MINIMAL, [override])


def test_what_a_method_cannot_do_is_refused():
    for section, message in (
        ({"method": {"name": "nat", "initialisation": "random"}}, "initialisation = random belongs to"),
        ({"method": {"name": "nat", "memory_start": "features"}}, "set memory_start = noise"),
        (
            {"optim": {"accumulation_steps": 4, "global_batch_size": 30}, "resources": {"tasks_per_node": 2}},
            "too small for 2 ranks and optim.accumulation_steps = 4: it must be at least 31",
        ),
    ):
        with pytest.raises(UsageError, match=message):
            build_config(MINIMAL | section, "test")


def test_how_fast_images_come_may_differ_from_launch_to_launch():
    first = build_config(MINIMAL, "test")
    other = {"dataset": "data/x", "num_workers": 2, "cache_dir": "/scratch", "cache_bytes": 10**9}
    second = build_config({"data": other}, "test")
    assert config_differences(first, second) == []
    assert first.digest() == second.digest()
    assert config_differences(first, build_config({"data": other | {"in_memory_bytes": 0}}, "test"))


def test_differences_are_listed_but_resources_may_differ():
    old = build_config(MINIMAL, "test")
    new = build_config(MINIMAL | {"method": {"num_neighbours": 5}, "slurm": {"partition": "gpu"}}, "test")
    assert config_differences(old, new) == ["method.num_neighbours: 1 -> 5"]
    elsewhere = {"resources": {"num_nodes": 2}, "slurm": {"partition": "gpu", "train": {"qos": "high"}}}
    same = build_config(MINIMAL | elsewhere, "test")
    assert config_differences(old, same) == []
    assert old.digest() == same.digest() != new.digest()


def test_the_record_gives_the_config_again():
    config = build_config(MINIMAL, "test")
    assert build_config(json.loads(json.dumps(config.model_dump(mode="json"))), "record") == config


def test_a_record_of_before_slurm_had_a_section_still_loads(tmp_path):
    from andscale.store.run_record import create_run, load_run

    create_run(tmp_path / "run", build_config(MINIMAL, "test"), tmp_path, "fingerprint")
    path = tmp_path / "run" / "run.json"
    record = json.loads(path.read_text())
    del record["config"]["slurm"]
    record["config"]["resources"] |= {"partition": "gpu", "account": "vision", "qos": None}
    path.write_text(json.dumps(record))
    config = load_run(tmp_path / "run").config
    assert (config.slurm.partition, config.slurm.account, config.slurm.qos) == ("gpu", "vision", None)
    assert config.digest() == record["config_hash"]


def test_a_step_of_slurm_takes_its_own_setting_else_the_common_one_else_that_of_the_resources():
    sections = {
        "resources": {"tasks_per_node": 4, "index_tasks_per_node": 2, "cpus_per_task": 8, "memory_gb": 64.0},
        "slurm": {"memory_gb": 128.0, "index": {"memory_gb": 256.0}, "evaluate": {"cpus_per_task": 3}},
    }
    config = build_config(MINIMAL | sections, "test")
    found = {kind: config.slurm.of_step(kind, config.resources) for kind in ("train", "index", "evaluate")}
    assert {kind: s.memory_gb for kind, s in found.items()} == {"train": 128, "index": 256, "evaluate": 128}
    # four training ranks of 8 CPUs are 16 for each of the two index ranks
    assert {kind: s.cpus_per_task for kind, s in found.items()} == {"train": 8, "index": 16, "evaluate": 3}
    assert {s.timeout_min for s in found.values()} == {1440}


def test_a_table_that_a_recorded_config_leaves_out_can_be_set():
    values = build_config(MINIMAL, "test").model_dump(mode="json")
    config = build_config(apply_overrides(values, ["slurm.additional.exclusive=true"]), "test")
    assert config.slurm.additional == {"exclusive": True}


def test_files_that_are_no_config_are_named(tmp_path):
    with pytest.raises(UsageError, match="no config file"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("a = [")
    with pytest.raises(UsageError, match=r"bad.toml is not valid TOML"):
        load_config(tmp_path / "bad.toml")


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "configs").glob("*.toml")), ids=lambda p: p.name)
def test_every_shipped_config_is_valid(path):
    load_config(path)


def test_settings_that_came_later_leave_the_hash_of_older_runs_alone():
    plain = {"data": {"dataset": "d"}}
    record = build_config(plain, "test").scientific_record()
    assert "num_clusters" not in record["method"] and "purity_neighbours" not in record["evaluation"]
    # what 0a7953c, which did not know them, gave for the same file
    assert build_config(plain, "test").digest().startswith("4e6c098896e70981")
    changed = build_config(plain | {"method": {"num_clusters": 7}}, "test")
    assert changed.scientific_record()["method"]["num_clusters"] == 7
    assert changed.digest() != build_config(plain, "test").digest()


def test_a_config_is_a_path_or_the_name_of_one_that_comes_with_the_package(tmp_path, monkeypatch, repository):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits_demo").mkdir()  # a folder of that name is not in the way
    for given in ("digits_demo", "digits_demo.toml", "configs/digits_demo.toml"):
        assert find_config(Path(given)).samefile(repository / "configs" / "digits_demo.toml")
    assert load_config(Path("digits_demo")).data.dataset == "data/digits"
    assert packaged_configs().keys() == {path.stem for path in (repository / "configs").glob("*.toml")}


def test_a_file_of_ones_own_goes_before_the_package_s(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits_demo.toml").write_text('[data]\ndataset = "mine"\n')
    assert load_config(Path("digits_demo.toml")).data.dataset == "mine"


@pytest.mark.parametrize("given", ["digits", "elsewhere/digits_demo.toml", "/digits_demo.toml", "../digits_demo", "."])
def test_a_name_that_is_not_there_gets_the_list(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no config file .*: cifar100_alexnet, .*digits_demo, .*svhn_resnet18$"):
        load_config(Path(given))
