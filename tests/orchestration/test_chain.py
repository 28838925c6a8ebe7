"""Chains on Slurm's clients as scripts: what is submitted, found again, and built anew."""

import pytest

from andscale.errors import RunError, UsageError
from andscale.orchestration import slurm as submitting
from andscale.orchestration.launch import LaunchRequest, launch
from andscale.orchestration.records import read_job_record
from andscale.orchestration.status import run_status
from andscale.orchestration.steps import Step, outputs
from andscale.store import artifacts
from andscale.store.run_layout import RunLayout
from fake_slurm import FakeSlurm
from tiny_runs import start_run

ALL = ["train:0", "evaluate:0", "index:1", "train:1", "evaluate:1"]


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    return FakeSlurm(tmp_path / "slurm", monkeypatch)


@pytest.fixture
def run(tmp_path, digits):
    return start_run(tmp_path / "my run's", digits)


def publish(layout, step):
    """What a step that went well leaves."""
    for name, kind in outputs(layout, step).items():
        with artifacts.publish(layout.root / name, kind=kind, provenance=artifacts.Provenance("c")) as draft:
            draft.path("x").write_text(name)
            draft.add("x")


def launch_rounds(layout, rounds=range(2)):
    launch(LaunchRequest(run=layout.root, rounds=rounds, cluster="slurm"))


def dependencies(slurm):
    return {job[3].split(":", 2)[2]: job[6] for job in slurm.jobs().values()}


def test_a_chain_is_submitted_in_one_go_and_found_by_the_next_launch(slurm, run, capsys):
    launch_rounds(run)
    assert f"; .venv/bin/andscale status --run {run.root} --follow shows it live" in capsys.readouterr().out
    assert list(slurm.ids()) == ALL
    ids = slurm.ids()
    assert dependencies(slurm)["train:1"] == f"afterok:{ids['train:0']}:{ids['index:1']}"
    launch_rounds(run)
    assert capsys.readouterr().out.count(" is there already") == 5
    assert slurm.num_submitted() == 5


def test_runs_of_the_same_name_in_two_folders_do_not_take_each_others_jobs(slurm, tmp_path, digits):
    for place in ("a", "b"):
        launch_rounds(start_run(tmp_path / place / "same", digits), range(1))
    assert slurm.num_submitted() == 4


@pytest.mark.parametrize(
    ("way", "why"), [("lose", "sbatch: error: Socket timed out on"), ("hang", "sbatch did not answer within 1 s")]
)
def test_a_lost_answer_of_sbatch_does_not_lead_to_a_second_job(slurm, run, capsys, monkeypatch, way, why):
    monkeypatch.setattr(submitting, "_SUBMIT_TIMEOUT_S", 1)
    slurm.switch(way)
    launch_rounds(run)
    assert f"train round 0: sbatch's answer was lost ({why}" in capsys.readouterr().out
    assert slurm.num_submitted() == 5
    first = slurm.ids()["train:0"]
    assert read_job_record(run, Step("train", 0)).job_id == first
    assert (run.round(0).logs("train") / f"{first}_submitted.pkl").exists(), "the job waits for what it runs"


@pytest.mark.parametrize("lost", [("record",), ("pickle",), ("record", "pickle")])
def test_a_launcher_killed_right_after_sbatch_leaves_a_job_that_the_next_one_completes(slurm, run, lost):
    launch_rounds(run)
    record, logs = run.round(0).job_record("train"), run.round(0).logs("train")
    first = slurm.ids()["train:0"]
    paths = {"record": record, "pickle": logs / f"{first}_submitted.pkl"}
    for name in lost:
        paths[name].unlink()
    launch_rounds(run)
    assert slurm.num_submitted() == 5
    assert read_job_record(run, Step("train", 0)).job_id == first
    assert (logs / f"{first}_submitted.pkl").exists()


def test_a_refused_job_says_why(slurm, run):
    slurm.switch("refuse")
    with pytest.raises(RunError, match="Slurm refused train round 0: sbatch: error: invalid partition specified: moon"):
        launch_rounds(run)


def test_nothing_is_submitted_while_squeue_does_not_answer(slurm, run):
    slurm.switch("down")
    with pytest.raises(RunError, match="squeue does not answer: slurm_load_jobs error: Unable to contact"):
        launch_rounds(run)
    assert slurm.num_submitted() == 0


def test_a_dead_job_is_submitted_again_and_those_that_wait_for_it_are_built_anew(slurm, run):
    launch_rounds(run)
    before = slurm.ids()
    slurm.end(before["train:0"])
    slurm.change(before["evaluate:0"], reason="DependencyNeverSatisfied")
    launch_rounds(run)
    after = slurm.ids()
    assert sorted(after) == sorted(ALL)
    assert not set(before.values()) & set(after.values()), "all of them were behind the dead job"
    assert dependencies(slurm)["evaluate:0"] == f"afterok:{after['train:0']}"
    assert sorted(slurm.cancelled()) == sorted(set(before.values()) - {before["train:0"]})


def test_a_job_that_runs_before_its_inputs_are_there_is_built_anew(slurm, run):
    """``afterok`` counts as satisfied when the controller has forgotten the job."""
    launch_rounds(run, range(1))
    before = slurm.ids()
    slurm.end(before["train:0"])
    slurm.change(before["evaluate:0"], state="RUNNING", after="(null)", node="n1")
    launch_rounds(run, range(1))
    assert dependencies(slurm)["evaluate:0"] == f"afterok:{slurm.ids()['train:0']}"


def test_what_is_done_is_skipped_what_lives_is_kept_what_was_cancelled_comes_again(slurm, run, capsys):
    launch_rounds(run)
    before = slurm.ids()
    publish(run, Step("train", 0))
    slurm.end(before["train:0"])
    for step in ("evaluate:0", "index:1"):
        slurm.change(before[step], state="RUNNING", after="(null)", node="n1")
    slurm.change(before["train:1"], after=f"afterok:{before['index:1']}(unfulfilled)")
    slurm.end(before["evaluate:1"])
    launch_rounds(run)
    after = slurm.ids()
    assert "train:0" not in after
    assert {step: after[step] for step in ALL[1:4]} == {step: before[step] for step in ALL[1:4]}
    assert after["evaluate:1"] != before["evaluate:1"]
    assert slurm.num_submitted() == 6


def test_a_local_launch_is_refused_while_a_slurm_job_of_the_run_may_live(slurm, run):
    launch_rounds(run, range(1))
    with pytest.raises(RunError, match="train round 0 may still be Slurm job 101"):
        launch(LaunchRequest(run=run.root, rounds=range(1), cluster="local"))
    assert RunLayout(run.root).record.exists()


@pytest.mark.parametrize("setting", ["num_nodes", "index_num_nodes", "evaluate_num_nodes"])
def test_a_local_launch_refuses_jobs_of_several_nodes(run, setting):
    request = LaunchRequest(run=run.root, rounds=range(1), overrides=(f"resources.{setting}=2",), cluster="local")
    with pytest.raises(UsageError, match=f"resources.{setting} is above 1: a run on this machine alone has one node"):
        launch(request)


def test_a_job_that_slurm_could_not_start_and_holds_is_released_by_the_next_launch(slurm, run, capsys):
    launch_rounds(run)
    held = slurm.ids()["train:0"]
    slurm.change(held, reason="launch failed requeued held")
    slurm.change(slurm.ids()["index:1"], reason="JobHeldUser")  # somebody's wish
    train = next(step for step in run_status(run.root).steps if str(step.step) == "train round 0")
    assert train.why == "Slurm could not start it and holds it: launching again releases it"
    capsys.readouterr()
    launch_rounds(run)
    assert slurm.released() == [held]
    assert f"job {held} was held by Slurm after it could not be started: released" in capsys.readouterr().out
    assert slurm.num_submitted() == 5
