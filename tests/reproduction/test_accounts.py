"""Hours, commits and ranks of a table, from manifests written by hand."""

from types import SimpleNamespace

import pytest

from andscale.reproduction import accounts
from andscale.reproduction.plan import Plan, planned_runs
from andscale.reproduction.tables import table_named


@pytest.fixture
def runs():
    """One-off, the planned donor (rounds 0 and 1), and the curriculum, counted from round 1 to 4."""
    return planned_runs(Plan(table_named("table6"), seeds=1))


@pytest.fixture
def world(monkeypatch):
    """``write(run, artefact, ...)``: manifests as ``load_manifest`` gives them; 10 s of one rank unless said."""
    written = {}

    def write(run, artefact, seconds=10.0, commit="late", **figures):
        written[run.root / artefact] = SimpleNamespace(
            seconds=seconds, commit=commit, figures={"world_size": 1} | figures
        )

    plain = SimpleNamespace(seconds=10.0, commit="late", figures={"world_size": 1})
    monkeypatch.setattr(accounts, "load_manifest", lambda folder, kind: written.get(folder, plain))
    return write


def trained(run, seconds, commit="early"):
    return {"run": run, "digest": "d", "seconds": seconds, "commit": commit}


# steps beside the training of round 0: One-off has 1 + 3, the curriculum 4 times 3
OTHERS = (4 + 12) * 10.0


def give_round_0(world, run, seconds, **more):
    for kind, of_kind in (("memory", seconds), ("model", seconds - 1)):
        world(run, f"rounds/00/{kind}", of_kind, **more)


def test_a_shared_round_0_counts_once(runs, world):
    one_off, curriculum = runs
    give_round_0(world, one_off, 1000.0)
    give_round_0(world, curriculum, 0.5, adopted_from=trained(one_off.root.name, 1000.0))
    assert accounts.rank_seconds(runs) == 1000 + OTHERS


def test_a_round_0_that_the_run_counted_from_round_1_trained_counts_too(runs, world):
    one_off, curriculum = runs
    give_round_0(world, curriculum, 1000.0)
    give_round_0(world, one_off, 0.5, adopted_from=trained(curriculum.root.name, 1000.0))
    assert accounts.rank_seconds(runs) == 1000 + OTHERS
    assert [accounts.trained_round_0(run) for run in runs] == [curriculum.root.name, None]


def test_a_round_0_of_another_table_counts_once_with_its_ranks(runs, world):
    for run in runs:
        give_round_0(world, run, 0.5, adopted_from=trained("elsewhere", 1000.0), world_size=4)
    assert accounts.rank_seconds(runs) == 4000 + OTHERS


def test_a_round_0_that_two_runs_trained_each_counts_twice(runs, world):
    for run in runs:
        give_round_0(world, run, 1000.0)
    assert accounts.rank_seconds(runs) == 2000 + OTHERS


def test_a_run_of_two_rows_counts_once(runs, world):
    assert accounts.rank_seconds([runs[0], runs[0]]) == accounts.rank_seconds([runs[0]]) == 50


def test_the_commit_that_trained_what_was_taken_over_is_listed(runs, world):
    give_round_0(world, runs[1], 0.5, adopted_from=trained("elsewhere", 1000.0))
    assert accounts.commits(runs) == ["early", "late"]
    old = trained("elsewhere", 1000.0)
    del old["commit"]  # recorded before commits were
    give_round_0(world, runs[1], 0.5, adopted_from=old)
    assert accounts.commits(runs) == ["late", "unknown"]


def test_ranks_of_training_are_those_of_all_rounds_whoever_trained_them(runs, world):
    give_round_0(world, runs[1], 0.5, adopted_from=trained("elsewhere", 1.0), world_size=4)
    world(runs[0], "rounds/01/evaluation", world_size=2)
    assert [accounts.training_ranks(run) for run in runs] == [[1], [1, 4]]
