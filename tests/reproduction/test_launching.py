"""Launching a table's runs beside those of other tables, runs that fail, and data sets that changed."""

import shutil
from dataclasses import replace

import pytest

from andscale.errors import RunError, UsageError
from andscale.orchestration.sharing import has_begun_round_0
from andscale.reproduction import runs as running
from andscale.reproduction.plan import Plan, planned_runs
from andscale.reproduction.runs import run_all
from andscale.reproduction.tables import table_named
from andscale.store.run_layout import RunLayout
from andscale.store.run_record import create_run
from fake_slurm import FakeSlurm

TRAIN_0 = "train:0"


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    return FakeSlurm(tmp_path / "slurm", monkeypatch)


def a_plan(folder, digits, arms, seeds=1, cluster="slurm"):
    """Some rows of figure 5: R = 1, R = 2."""
    table = table_named("figure5")
    table = replace(table, arms=tuple(table.arms[place] for place in arms))
    return Plan(table, "smoke", seeds, (f"data.dataset={digits.root}",), cluster, folder / "runs")


@pytest.fixture
def other_table(tmp_path, digits, slurm):
    """Another table has submitted R = 2, round 0 with it; the plan of both rows, whose planned donor is R = 1."""
    (run,) = run_all(a_plan(tmp_path, digits, [1]))
    both = a_plan(tmp_path, digits, [0, 1])
    first, second = planned_runs(both)
    assert (first.donor, second.donor, second.root) == (None, first.root, run.root)
    return both


def test_a_round_0_that_another_table_trains_on_slurm_is_waited_for(other_table, slurm, capsys):
    first, second = planned_runs(other_table)
    before = slurm.num_submitted()
    assert run_all(other_table) == [first, second]
    assert f"waits for round 0 of {second.root}:" in capsys.readouterr().out
    assert not first.root.exists()
    # the run that trains it goes on with all of its rounds, though the plan counts it from round 1
    assert slurm.num_submitted() == before


@pytest.mark.parametrize("state", ["gone", "behind a job that failed", "held"])
def test_a_round_0_that_is_not_trained_any_more_is_not_waited_for(other_table, slurm, state):
    first, second = planned_runs(other_table)
    job = slurm.ids()[TRAIN_0]
    if state == "gone":
        slurm.end(job)
    else:
        reason = {"held": "launch failed requeued held"}.get(state, "DependencyNeverSatisfied")
        slurm.change(job, reason=reason)
    run_all(other_table)
    assert has_begun_round_0(first.root)
    assert has_begun_round_0(second.root)


def test_a_launch_on_this_machine_asks_no_slurm(other_table, slurm, monkeypatch):
    slurm.switch("down")
    launched = []
    monkeypatch.setattr(running, "launch", lambda request: launched.append(request.run))
    first, _ = planned_runs(replace(other_table, cluster="local"))
    run_all(replace(other_table, cluster="local"))
    assert launched[0] == first.root


def test_slurm_that_was_asked_for_and_is_not_there_ends_the_command_at_once(tmp_path, digits, monkeypatch, capsys):
    monkeypatch.setattr("andscale.orchestration.slurm_queue.controller_answers", lambda: False)
    with pytest.raises(RunError, match="no Slurm controller answers"):
        run_all(a_plan(tmp_path, digits, [0, 1]))
    assert "run 1 of" not in capsys.readouterr().out


def test_a_run_that_fails_does_not_keep_the_others_and_is_named_at_the_end(tmp_path, digits, monkeypatch, capsys):
    plan = a_plan(tmp_path, digits, [0, 1], 2, "local")
    runs, done = planned_runs(plan), set()
    monkeypatch.setattr(running, "is_complete", lambda run: run.root in done)
    monkeypatch.setattr(running, "_has_round_0", lambda root: root in done)
    monkeypatch.setattr(running, "adopt_initialisation", lambda donor, request: True)

    def launch(request):
        if request.run == runs[0].root:
            raise RunError("train round 0 failed: out of memory")
        done.add(request.run)

    monkeypatch.setattr(running, "launch", launch)
    with pytest.raises(RunError, match=rf"1 of 4 runs failed, so there is no table: {runs[0].root}; the same command"):
        run_all(plan)
    assert done == {runs[2].root, runs[3].root}, "the second waits for the first, the others do not"
    assert "failed: train round 0 failed: out of memory" in capsys.readouterr().out


def test_wrong_use_ends_the_command_at_once(tmp_path, digits, monkeypatch):
    asked = []

    def launch(request):
        asked.append(request.run)
        raise UsageError("k is too large")

    monkeypatch.setattr(running, "launch", launch)
    with pytest.raises(UsageError, match="k is too large"):
        run_all(a_plan(tmp_path, digits, [0, 1], cluster="local"))
    assert len(asked) == 1


def test_runs_of_another_version_of_the_data_set_are_named_before_anything_starts(tmp_path, digits, monkeypatch):
    plan = a_plan(tmp_path, digits, [0, 1], 2, "local")
    runs = planned_runs(plan)
    create_run(runs[0].root, runs[0].config, digits.root, digits.fingerprint)
    create_run(runs[3].root, runs[3].config, digits.root, "0" * 64)
    monkeypatch.setattr(running, "launch", lambda request: pytest.fail("launched"))
    with pytest.raises(UsageError, match=rf"^{runs[3].root}: made from another version of {digits.root} .* move"):
        run_all(plan)


def test_a_round_0_of_another_version_of_the_data_set_is_not_taken_over(tmp_path, digits, monkeypatch):
    plan = a_plan(tmp_path, digits, [0, 1])
    first, second = planned_runs(plan)
    create_run(second.root, second.config, digits.root, "0" * 64)
    monkeypatch.setattr(running, "_has_round_0", lambda root: root == second.root)
    assert running._trained_donor(first, plan.root) is None
    shutil.rmtree(second.root)
    create_run(second.root, second.config, digits.root, digits.fingerprint)
    assert running._trained_donor(first, plan.root) == second.root


def test_a_run_of_which_nothing_has_begun_waits_for_the_planned_donor(tmp_path, digits, slurm, capsys):
    plan = a_plan(tmp_path, digits, [0, 1])
    first, second = planned_runs(plan)
    create_run(second.root, second.config, digits.root, digits.fingerprint)  # killed right after that
    run_all(plan)
    assert f"waits for round 0 of {first.root}" in capsys.readouterr().out
    assert not RunLayout(second.root).round(0).job_record("train").exists()
