"""Training stopped between two steps: by whom, where it goes on, and that it ends as if it had not been stopped."""

import os
import signal

import numpy as np
import pytest
import torch

from andscale.data.reader import batch_bounds, epoch_order
from andscale.distributed import World
from andscale.errors import UsageError
from andscale.metrics import read_metrics
from andscale.training import loop, start
from andscale.training.stopping import Request, StepBoundary, StoppedError, StopSignals
from ranks import run_ranks
from tiny_runs import assert_same_state, launched, start_run, trained_state

N, SIZE = 143, 32
STEPS = 5  # an epoch


@pytest.fixture(scope="module")
def whole(tmp_path_factory, digits):
    """Two epochs that were never stopped, by number of ranks; made when first asked for."""
    made = {}

    def run(world_size):
        if world_size not in made:
            made[world_size] = start_run(tmp_path_factory.mktemp("whole") / "run", digits)
            run_ranks(_train, world_size, made[world_size].root, grouped=False)
        return made[world_size]

    return run


def _train(world, root, stops=(), *, minutes=15, plain=False):
    """What training round 0 ended with on this rank, and (epoch, step, sample ids) of its steps.

    ``stops`` holds (rank, number of a step of this call, signal): that rank sends itself that signal in that step.
    """
    seen, step_of = [], loop.TrainingStep.__call__

    def spied(self, batch, where, *rest):
        for rank, number, what in stops:
            if (world.rank, len(seen)) == (rank, number):
                os.kill(os.getpid(), what)
        seen.append((where[1], batch.step, batch.sample_ids.tolist()))
        step_of(self, batch, where, *rest)

    _use_running_statistics() if plain else _add_dropout()
    loop.TrainingStep.__call__ = spied
    try:
        loop.train_round(root, 0, world, StopSignals(), launched(root, resources={"checkpoint_min": minutes}))
    except StoppedError as error:
        return str(error), error.request, seen
    finally:
        loop.TrainingStep.__call__ = step_of
    return "finished", Request.GO_ON, seen


def _train_plainly(world, root, stops=()):
    return _train(world, root, stops, plain=True)


def _add_dropout():
    """A network that draws, as some of timm's do."""
    build = start.build_backbone

    def with_dropout(*arguments):
        network = build(*arguments)
        network.head.register_forward_pre_hook(
            lambda module, inputs: torch.nn.functional.dropout(inputs[0], 0.1, module.training)
        )
        return network

    start.build_backbone = with_dropout


def _use_running_statistics():
    """Batch statistics are those of a rank's share: out of the way, where numbers of ranks are compared."""

    def forward(self, x):
        return torch.nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)

    torch.nn.BatchNorm2d.forward = forward


def _figures(layout):
    records = read_metrics(layout.round(0).metrics)
    return [{name: r[name] for name in ("round", "epoch", "loss", "learning_rate", "num_steps")} for r in records]


def _checkpoints(layout):
    return sorted(path.name for path in layout.round(0).checkpoints.iterdir())


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_round_stopped_within_epochs_ends_bit_for_bit_like_one_that_was_not(tmp_path, digits, whole, world_size):
    layout = start_run(tmp_path / "run", digits)
    last = world_size - 1  # one rank is hit alone
    answers = run_ranks(_train, world_size, layout.root, [(last, 1, signal.SIGTERM)], grouped=False)
    # it is heard of at the end of the step that begins next
    assert {a[:2] for a in answers} == {
        ("stopped at round 0, epoch 0, step 3; the same command goes on from there", Request.STOP)
    }
    assert _checkpoints(layout) == ["epoch-0000-step-000003"]
    # two steps are left of epoch 0; another signal comes in the step that the first one ends
    signals = [(0, 2, signal.SIGUSR2), (last, 3, signal.SIGTERM)]
    answers = run_ranks(_train, world_size, layout.root, signals, grouped=False)
    assert {a[1] for a in answers} == {Request.REQUEUE}
    assert _checkpoints(layout) == ["epoch-0001", "epoch-0001-step-000002"]
    assert {a[0] for a in run_ranks(_train, world_size, layout.root, grouped=False)} == {"finished"}
    assert_same_state(trained_state(whole(world_size), 0), trained_state(layout, 0))
    assert _figures(layout) == _figures(whole(world_size))


def test_three_ranks_then_two_then_one_read_every_sample_once_an_epoch_with_the_same_loss(tmp_path, digits):
    alone, changing = (start_run(tmp_path / name, digits) for name in ("alone", "changing"))
    run_ranks(_train_plainly, 1, alone.root, grouped=False)
    seen = []
    for world_size, stops in ((3, [(1, 0, signal.SIGINT)]), (2, [(0, 3, signal.SIGUSR2)]), (1, [])):
        for _, _, steps in run_ranks(_train_plainly, world_size, changing.root, stops, grouped=False):
            seen += steps
    for epoch in (0, 1):
        order = epoch_order(N, 0, 0, epoch)
        for step, (first, last) in enumerate(batch_bounds(N, SIZE)):
            read = [i for e, s, ids in seen if (e, s) == (epoch, step) for i in ids]
            assert sorted(read) == sorted(order[first:last].tolist()), (epoch, step)
    for mine, other in zip(_figures(changing), _figures(alone), strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-5)
    for mine, other in zip(trained_state(changing, 0)[0].items(), trained_state(alone, 0)[0].items(), strict=True):
        np.testing.assert_allclose(mine[1], other[1], atol=1e-3, err_msg=mine[0])


def test_a_stop_behind_the_last_step_of_an_epoch_is_the_epochs_end(tmp_path, digits, whole):
    layout = start_run(tmp_path / "run", digits)
    ((said, _, _),) = run_ranks(_train, 1, layout.root, [(0, STEPS - 2, signal.SIGTERM)], grouped=False)
    assert said.startswith("stopped at round 0, epoch 1, step 0;")
    assert _checkpoints(layout) == ["epoch-0001"]
    assert _figures(layout) == _figures(whole(1))[:1]


def test_checkpoints_within_an_epoch_come_by_the_clock_of_rank_0(tmp_path, digits, whole):
    layout = start_run(tmp_path / "run", digits)
    answers = run_ranks(_train_saving_every_step, 2, layout.root, grouped=False)
    assert answers == ["killed"] * 2
    assert _checkpoints(layout) == ["epoch-0000-step-000003", "epoch-0000-step-000004"]
    run_ranks(_train, 2, layout.root, grouped=False)
    assert_same_state(trained_state(whole(2), 0), trained_state(layout, 0))
    assert _figures(layout) == _figures(whole(2))


def _train_saving_every_step(world, root):
    """As if killed in the last step of epoch 0; rank 1 would wait for ever."""
    step_of = loop.TrainingStep.__call__

    def dying(self, batch, *rest):
        if batch.step == STEPS - 1:
            raise KeyboardInterrupt
        step_of(self, batch, *rest)

    loop.TrainingStep.__call__ = dying
    minutes = 1e-9 if world.is_main else 1e9
    with pytest.raises(KeyboardInterrupt):
        _add_dropout()
        loop.train_round(root, 0, world, launched=launched(root, resources={"checkpoint_min": minutes}))
    return "killed"


def test_handlers_are_put_back_and_a_requeue_outweighs_a_stop():
    before = signal.getsignal(signal.SIGTERM)
    signals = StopSignals()
    with signals.installed():
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
    assert signals.heard is Request.REQUEUE
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_boundary_says_what_was_heard_when_its_step_began():
    signals = StopSignals()
    boundary = StepBoundary(World(), signals, checkpoint_min=1e9)
    boundary.start()
    signals.heard = Request.STOP
    assert not boundary.end()
    boundary.start()
    assert boundary.end()
    with pytest.raises(StoppedError, match="stopped at here; the same command goes on from there"):
        boundary.saved("here")


def test_a_launch_reads_as_it_asks_and_changes_no_result(tmp_path, digits, monkeypatch):
    layout = start_run(tmp_path / "run", digits)
    seen = []

    def opened(record, device):
        seen.append(record.config.data.num_workers)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "open_reader", opened)
    for config in (None, launched(layout.root, data={"num_workers": 3})):
        with pytest.raises(KeyboardInterrupt):
            loop.train_round(layout.root, 0, World(), launched=config)
    assert seen == [None, 3]
    with pytest.raises(UsageError, match="another config .*data.image_size: 8 -> 12"):
        loop.train_round(layout.root, 0, World(), launched=launched(layout.root, data={"image_size": 12}))
