import contextlib
import io
import json
import os
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from andscale.config import OptimConfig
from andscale.distributed import World
from andscale.errors import RunError, UsageError
from andscale.indexing.rebuild import rebuild_index
from andscale.metrics import read_metrics
from andscale.store import files
from andscale.store.neighbourhoods import read_table
from andscale.store.run_record import load_run
from andscale.training import loop, methods
from andscale.training.inputs import load_inputs
from andscale.training.part_clock import PARTS
from ranks import run_ranks
from tiny_runs import assert_same_state, start_run, trained_state


def _train(world, root, number, stop_after=None):
    """Train a round on this rank; ``stop_after``: die without a word once so many epochs are saved."""
    if stop_after is not None:
        saved = loop.save_checkpoint

        def save_and_die(folder, position, *rest):
            saved(folder, position, *rest)
            if position.epoch == stop_after:
                raise KeyboardInterrupt

        loop.save_checkpoint = save_and_die
    try:
        loop.train_round(root, number, world)
    except KeyboardInterrupt:
        return "stopped"
    return "finished"


def test_the_published_schedule():
    config = OptimConfig()
    rates = [loop.learning_rate(config, epoch, 0, 100) for epoch in (0, 79, 80, 119, 120, 159, 160, 199)]
    assert rates == pytest.approx([0.03, 0.03, 3e-3, 3e-3, 3e-4, 3e-4, 3e-5, 3e-5])


def test_the_cosine_schedule_warms_up_and_ends_at_zero():
    config = OptimConfig(schedule="cosine", num_epochs=10, warmup_steps=5, learning_rate=1.0)
    rates = [loop.learning_rate(config, epoch, step, 5) for epoch in range(10) for step in range(5)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == rates[4]
    assert rates[25] == pytest.approx(0.5)
    assert 0 < rates[-1] < 0.002


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_round_that_was_stopped_ends_bit_for_bit_like_one_that_was_not(tmp_path, digits, world_size):
    whole, stopped = (start_run(tmp_path / name, digits, optim={"num_epochs": 3}) for name in ("a", "b"))
    assert run_ranks(_train, world_size, whole.root, 0, grouped=False) == ["finished"] * world_size
    assert run_ranks(_train, world_size, stopped.root, 0, 1, grouped=False) == ["stopped"] * world_size
    assert not stopped.round(0).memory.exists()
    assert run_ranks(_train, world_size, stopped.root, 0, grouped=False) == ["finished"] * world_size
    assert_same_state(trained_state(whole, 0), trained_state(stopped, 0))
    assert [r["epoch"] for r in read_metrics(stopped.round(0).metrics)] == [0, 1, 2]
    for record in read_metrics(whole.round(0).metrics):
        shares = [record[f"{part}_fraction"] for part in PARTS]
        assert min(shares) > 0
        assert sum(shares) == pytest.approx(1, abs=1e-3)
    strip = [{k: r[k] for k in ("epoch", "loss", "learning_rate")} for r in read_metrics(whole.round(0).metrics)]
    assert strip == [{k: r[k] for k in strip[0]} for r in read_metrics(stopped.round(0).metrics)]
    assert [p.name for p in sorted(whole.round(0).checkpoints.iterdir())] == ["epoch-0002", "epoch-0003"]


def test_a_checkpoint_of_three_ranks_is_gone_on_with_by_one(tmp_path, digits):
    layout = start_run(tmp_path / "run", digits)
    run_ranks(_train, 3, layout.root, 0, 1, grouped=False)
    names = {p.name for p in (layout.round(0).checkpoints / "epoch-0001").iterdir()}
    assert {f"features-0000{r}-of-00003.parquet" for r in range(3)} < names
    # a job killed between an epoch's record and its checkpoint: the epoch is trained and recorded again
    with layout.round(0).metrics.open("a") as file:
        file.write('{"epoch": 1, "loss": 0.0}\n{"epoch": 2, "lo')
    run_ranks(_train, 1, layout.root, 0, grouped=False)
    _, memory = trained_state(layout, 0)
    assert memory.shape == (143, 16)
    assert [r["epoch"] for r in read_metrics(layout.round(0).metrics)] == [0, 1]


def test_the_first_step_is_the_same_on_one_two_and_three_ranks(tmp_path, digits):
    """With batch norm's batch statistics out of the way, loss, weights and memory after an epoch agree to rounding."""
    states = []
    for world_size in (1, 2, 3):
        layout = start_run(tmp_path / str(world_size), digits, optim={"num_epochs": 1})
        run_ranks(_train_without_batch_norm, world_size, layout.root, grouped=False)
        losses = [r["loss"] for r in read_metrics(layout.round(0).metrics)]
        states.append((losses, *trained_state(layout, 0)))
    for losses, weights, memory in states[1:]:
        assert losses == pytest.approx(states[0][0], rel=1e-5)
        np.testing.assert_allclose(memory, states[0][2], atol=2e-4)
        for name, values in weights.items():
            np.testing.assert_allclose(values, states[0][1][name], atol=2e-4, err_msg=name)


def test_a_run_in_half_precision_goes_from_round_to_round(tmp_path, digits):
    whole, half = (
        start_run(tmp_path / dtype, digits, storage={"feature_dtype": dtype}) for dtype in ("float32", "float16")
    )
    for layout in (whole, half):
        run_ranks(_train, 2, layout.root, 0, grouped=False)
    (weights, memory), (same_weights, rounded) = trained_state(whole, 0), trained_state(half, 0)
    np.testing.assert_array_equal(weights["head.weight"], same_weights["head.weight"])
    np.testing.assert_allclose(rounded, memory, atol=5e-4)
    assert (rounded != memory).any()
    stored = pq.read_schema(half.round(0).memory / "features-00000-of-00002.parquet")
    assert str(stored.field("feature").type.value_type) == "halffloat"
    kept = pq.read_schema(half.round(0).checkpoints / "epoch-0002" / "features-00000-of-00002.parquet")
    assert str(kept.field("feature").type.value_type) == "float"
    rebuild_index(half.root, 1)
    run_ranks(_train, 1, half.root, 1, grouped=False)
    assert len(trained_state(half, 1)[1]) == 143


def _train_without_batch_norm(world, root):
    def with_running_statistics(self, x):
        return torch.nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)

    torch.nn.BatchNorm2d.forward = with_running_statistics
    loop.train_round(root, 0, world)


def _train_until_nan(world, root):
    real = methods.batch_objective
    calls = []

    def broken(features, *rest, **options):
        calls.append(1)
        return real(features * float("nan") if len(calls) == 3 else features, *rest, **options)

    methods.batch_objective = broken
    try:
        loop.train_round(root, 0, world)
    except RunError as error:
        return str(error)


def test_a_loss_that_is_not_finite_stops_before_the_step_with_place_and_ids(tmp_path, digits):
    layout = start_run(tmp_path / "run", digits)
    messages = run_ranks(_train_until_nan, 2, layout.root, grouped=False)
    for rank, message in enumerate(messages):
        assert message.startswith(
            f"round 0, epoch 0, step 2, rank {rank}: the loss or its gradient is nan; sample ids "
        )
    assert not layout.round(0).memory.exists()
    assert not layout.round(0).checkpoints.exists()


@pytest.fixture(scope="module")
def one_round(tmp_path_factory, digits):
    """A run whose round 0 is trained and whose round 1 has neighbourhoods; copied before use."""
    layout = start_run(tmp_path_factory.mktemp("run") / "r", digits)
    run_ranks(_train, 1, layout.root, 0, grouped=False)
    rebuild_index(layout.root, 1)
    return layout


@pytest.fixture
def copied(one_round, tmp_path):
    shutil.copytree(one_round.root, tmp_path / "run")
    return type(one_round)(tmp_path / "run")


def _train_and_hear(world, root):
    with contextlib.redirect_stderr(io.StringIO()) as heard:
        loop.train_round(root, 0, world)
    return heard.getvalue()


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_it(copied):
    expected = trained_state(copied, 0)
    for name in ("memory", "model"):
        shutil.rmtree(copied.round(0).root / name)
    path = copied.round(0).checkpoints / "epoch-0002" / "state.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    (heard,) = run_ranks(_train_and_hear, 1, copied.root, grouped=False)
    assert f"warning: checkpoint passed over: {path} does not have the hash" in heard
    assert_same_state(trained_state(copied, 0), expected)


def test_a_checkpoint_made_with_other_inputs_is_refused(copied):
    for name in ("memory", "model"):
        shutil.rmtree(copied.round(0).root / name)
    record = json.loads(copied.record.read_text())
    record["config"]["optim"]["learning_rate"] = 0.5
    copied.record.write_text(json.dumps(record))
    with pytest.raises(RunError, match="was made from other inputs than this round has"):
        loop.train_round(copied.root, 0, World())


def test_a_pickle_in_place_of_a_checkpoint_is_not_executed(copied, tmp_path):
    import pickle

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    for name in ("memory", "model"):
        shutil.rmtree(copied.round(0).root / name)
    folder = copied.round(0).checkpoints / "epoch-0002"
    (folder / "state.pt").write_bytes(pickle.dumps(Bomb()))
    manifest = json.loads((folder / "manifest.json").read_text())
    for file in manifest["files"]:
        if file["name"] == "state.pt":
            file["bytes"] = (folder / "state.pt").stat().st_size
            file["blake3"] = files.hash_file(folder / "state.pt")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunError, match=r"state.pt is not a checkpoint of ours"):
        loop.train_round(copied.root, 0, World())
    assert not (tmp_path / "exploded").exists()


def test_anchors_are_trained_with_their_neighbours_and_instances_alone(copied):
    table, _ = read_table(copied.round(1).neighbourhoods)
    inputs = load_inputs(load_run(copied.root), copied, 1, 143)
    assert table.is_anchor.sum() == 143 // 4
    for i in range(143):
        neighbour = table.neighbour_ids[i, 0] if table.is_anchor[i] else -1
        assert inputs.members[i].tolist() == [i, neighbour]


def test_a_round_is_refused_when_its_neighbourhoods_are_of_another_memory(copied):
    path = copied.round(0).memory / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"parents": {"dataset": "another"}}))
    with pytest.raises(RunError, match="was not made from .*memory as it is now: remove .*rounds/01"):
        loop.train_round(copied.root, 1, World())


def test_missing_inputs_are_named(copied):
    with pytest.raises(UsageError, match="round 1 has no memory: run --round 1 first"):
        loop.train_round(copied.root, 2, World())
    shutil.rmtree(copied.round(1).neighbourhoods)
    with pytest.raises(UsageError, match="round 1 has no neighbourhoods: run jobs/rebuild_index.py --round 1 first"):
        loop.train_round(copied.root, 1, World())


def test_another_data_set_under_a_run_is_refused(copied):
    record = json.loads(copied.record.read_text())
    record["dataset"]["fingerprint"] = "0" * 64
    copied.record.write_text(json.dumps(record))
    with pytest.raises(RunError, match="is not the data set that this run was started with"):
        loop.train_round(copied.root, 1, World())


def test_the_published_network_trains_too(tmp_path, digits):
    config = {"model": {"backbone": "resnet18"}, "optim": {"num_epochs": 1}, "data": {"max_train_samples": 20}}
    layout = start_run(tmp_path / "run", digits, **config)
    run_ranks(_train, 1, layout.root, 0, grouped=False)
    weights, memory = trained_state(layout, 0)
    assert weights["trunk.0.weight"].shape == (64, 3, 3, 3), "the 3x3 stem of small images"
    np.testing.assert_allclose(np.linalg.norm(memory, axis=1), 1, atol=1e-5)


def _train_with_an_infinite_gradient(world, root):
    real = methods.batch_objective

    def broken(features, *rest, **options):
        features.register_hook(lambda gradient: gradient * float("inf"))
        return real(features, *rest, **options)

    methods.batch_objective = broken
    try:
        loop.train_round(root, 0, world)
    except RunError as error:
        return str(error)


def test_a_gradient_that_is_not_finite_stops_before_the_step(tmp_path, digits):
    layout = start_run(tmp_path / "run", digits)
    (message,) = run_ranks(_train_with_an_infinite_gradient, 1, layout.root, grouped=False)
    assert message.startswith("round 0, epoch 0, step 0, rank 0: the loss or its gradient is ")
    assert not layout.round(0).checkpoints.exists()


def _train_and_hear_usage(world, root):
    try:
        loop.train_round(root, 0, world)
    except UsageError as error:
        return str(error)


def test_batches_too_small_for_the_ranks_are_refused(tmp_path, digits):
    layout = start_run(tmp_path / "run", digits, optim={"global_batch_size": 5})
    messages = run_ranks(_train_and_hear_usage, 3, layout.root, grouped=False)
    assert messages == ["batches of 4 samples are too small for 3 ranks: use fewer ranks, or a larger "
                        "optim.global_batch_size"] * 3  # fmt: skip


def test_artefacts_of_another_config_are_refused(copied):
    record = json.loads(copied.record.read_text())
    record["config"]["optim"]["learning_rate"] = 0.5
    copied.record.write_text(json.dumps(record))
    with pytest.raises(RunError, match="memory was made with another config than this run has"):
        loop.train_round(copied.root, 1, World())


def test_a_half_published_round_whose_checkpoint_is_lost_is_made_anew(copied):
    expected = trained_state(copied, 0)
    shutil.rmtree(copied.round(0).memory)
    shutil.rmtree(copied.round(0).checkpoints)
    weights = copied.round(0).model / "model.safetensors"
    before = weights.stat().st_mtime_ns
    run_ranks(_train, 1, copied.root, 0, grouped=False)
    assert weights.stat().st_mtime_ns != before
    assert_same_state(trained_state(copied, 0), expected)


def test_a_half_published_round_with_its_checkpoint_is_finished(copied):
    expected = trained_state(copied, 0)
    shutil.rmtree(copied.round(0).memory)
    weights = copied.round(0).model / "model.safetensors"
    before = weights.stat().st_mtime_ns
    run_ranks(_train, 1, copied.root, 0, grouped=False)
    assert weights.stat().st_mtime_ns == before
    assert_same_state(trained_state(copied, 0), expected)


def test_a_rank_reads_its_own_rows_of_the_memory_alone(copied):
    record = load_run(copied.root)
    whole = load_inputs(record, copied, 1, 143).memory
    parts = [load_inputs(record, copied, 1, 143, World(rank, 3)).memory for rank in range(3)]
    assert [len(part) for part in parts] == [47, 48, 48]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    with pytest.raises(RunError, match="memory has 143 samples, the data 142"):
        load_inputs(record, copied, 1, 142)
