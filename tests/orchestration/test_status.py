import io
import json
import os
import time

import pytest

from andscale.errors import RunError
from andscale.orchestration import follow, status
from andscale.orchestration.cancel import cancel_run
from andscale.orchestration.holding import hold_run
from andscale.orchestration.jobs import ERROR_MARK
from andscale.orchestration.jobs_view import JobsView, LiveJob
from andscale.orchestration.launch import LaunchRequest, launch
from andscale.orchestration.records import write_job_record
from andscale.orchestration.status import run_status, step_status
from andscale.orchestration.status_table import status_table
from andscale.orchestration.steps import Step, outputs
from andscale.store import artifacts
from fake_slurm import FakeSlurm
from tiny_runs import start_run

NOBODY = JobsView()
TRAIN_0 = Step("train", 0)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    return FakeSlurm(tmp_path / "slurm", monkeypatch)


@pytest.fixture
def run(tmp_path, digits):
    return start_run(tmp_path / "run", digits, method={"num_rounds": 1})


def publish(layout, step, parents=None, text="x"):
    """What a step that went well leaves."""
    for name, kind in outputs(layout, step).items():
        provenance = artifacts.Provenance("c", parents or {})
        with artifacts.publish(layout.root / name, kind=kind, provenance=provenance) as draft:
            body = {"accuracy": 0.75, "knn": {}, "linear": {}} if kind == "evaluation" else text
            draft.path(f"{kind}.json").write_text(json.dumps(body))
            draft.add(f"{kind}.json")
            draft.figures["num_epochs"] = 2


def log(layout, step, job_id, *lines, rank=0):
    path = layout.round(step.round_number).logs(step.kind) / f"{job_id}_{rank}_log.out"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def states(layout):
    return {str(s.step): s.state for s in run_status(layout.root).steps}


def test_a_new_run_has_every_step_of_its_curriculum_and_nothing_of_it(run):
    assert states(run) == dict.fromkeys(
        ["train round 0", "evaluate round 0", "index round 1", "train round 1", "evaluate round 1"], "absent"
    )


def test_a_done_step_says_when_how_long_and_its_figures(run):
    publish(run, TRAIN_0)
    publish(run, Step("evaluate", 0))
    train, evaluate = (step_status(run, step, NOBODY) for step in (TRAIN_0, Step("evaluate", 0)))
    assert (train.state, train.figures) == ("done", {"num_epochs": 2})
    assert abs(time.mktime(time.strptime(train.since, "%Y-%m-%d %H:%M:%S")) - time.time()) < 60
    assert train.seconds >= 0
    assert evaluate.figures == {"accuracy": 0.75}
    assert "accuracy 0.7500" in status_table(run_status(run.root))


def test_a_running_step_says_where_how_far_how_fast_and_how_long_still(run):
    log(
        run,
        TRAIN_0,
        17,
        "train round 0 epoch 1/4 100 % 100/100 [0:10 < 0:00, 10 images/s, loss 5.0]",
        "train round 0 epoch 3/4 ⋯  50 % 50/100 [1:05 < 1:05, 1,234 images/s, loss 4.1, data wait 3 %]",
        "submitit WARNING (2026-11-25 00:53:57,219) - Bypassing signal SIGTERM",
    )
    log(run, TRAIN_0, 18, "of another job 3 % 3/100 [0:01 < 0:09]")
    found = step_status(run, TRAIN_0, JobsView({TRAIN_0: LiveJob("slurm", "17", True, "n3", time.time())}))
    assert (found.state, found.job, found.node, found.rate) == ("running", "job 17", "n3", "1,234 images/s")
    assert found.fraction == 0.625, "two epochs and a half of four"
    assert found.seconds_left == 65 + 130, "the rest of this epoch and a whole one"
    assert found.log.endswith("17_0_log.out")


def test_a_waiting_step_says_on_what(run):
    jobs = {
        TRAIN_0: LiveJob("slurm", "1", False, reason="Priority"),
        Step("evaluate", 0): LiveJob("slurm", "2", False, reason="Dependency"),
        Step("index", 1): LiveJob("slurm", "3", False, reason="DependencyNeverSatisfied", never_starts=True),
    }
    found = [step_status(run, step, JobsView(jobs)) for step in jobs]
    assert [s.state for s in found] == ["waiting"] * 3
    assert [s.waits_for for s in found] == ["Priority", "train round 0", "train round 0"]
    assert [s.why for s in found] == [None, None, "it waits for a job that failed"]


def test_a_failed_step_says_why_in_the_words_of_the_rank_that_knows(run):
    log(run, TRAIN_0, 17, "round 0: 2 ranks", "Traceback: something else")
    path = log(run, TRAIN_0, 17, "x", f"{ERROR_MARK}the loss is not finite", "y", rank=1)
    found = step_status(run, TRAIN_0, NOBODY)
    assert (found.state, found.why, found.log) == ("failed", "the loss is not finite", str(path))


def test_a_job_that_was_killed_is_failed_with_its_last_words(run):
    log(run, TRAIN_0, 17, "round 0: 2 ranks", "submitit INFO (x) - y")
    assert step_status(run, TRAIN_0, NOBODY).why == "it ended without a word, the last was: round 0: 2 ranks"


def test_a_job_that_was_cancelled_before_it_began_leaves_its_step_absent(run):
    write_job_record(run, TRAIN_0, cluster="slurm", job_id="17")
    found = step_status(run, TRAIN_0, NOBODY)
    assert (found.state, found.why) == ("absent", "job 17 ended before it started")


def test_a_step_made_from_another_version_of_a_parent_is_stale(run):
    publish(run, TRAIN_0)
    publish(run, Step("index", 1), {"rounds/00/memory": "0" * 64})
    found = step_status(run, Step("index", 1), NOBODY)
    assert (found.state, found.why) == (
        "stale",
        "made from another rounds/00/memory than the one that is there now",
    )


def test_a_step_with_a_damaged_artefact_is_failed_and_names_the_file(run):
    publish(run, TRAIN_0)
    (run.round(0).memory / "memory.json").unlink()
    found = step_status(run, TRAIN_0, NOBODY)
    assert found.state == "failed"
    assert "memory.json is missing, but its record lists it: launch with --rebuild" in found.why


def test_slurm_adds_what_it_knows_to_a_submitted_chain(slurm, run):
    launch(LaunchRequest(run=run.root, rounds=range(2), cluster="slurm"))
    slurm.change("101", state="RUNNING", node="n7", started="1790000000")
    found = {str(s.step): s for s in run_status(run.root).steps}
    assert [s.state for s in found.values()] == ["running", "waiting", "waiting", "waiting", "waiting"]
    assert (found["train round 0"].node, found["train round 0"].job) == ("n7", "job 101")
    assert found["train round 1"].waits_for == "train round 0, index round 1"
    record = json.loads(json.dumps(run_status(run.root).record()))
    assert [(s["step"], s["round"], s["state"]) for s in record["steps"]][:2] == [
        ("train", 0, "running"),
        ("evaluate", 0, "waiting"),
    ]


@pytest.mark.parametrize("trouble", ["down", "slow"])
def test_without_slurms_answer_the_disk_speaks_and_one_line_says_so(slurm, run, trouble, monkeypatch):
    monkeypatch.setattr(status, "_SLURM_TIMEOUT_S", 0.5)
    launch(LaunchRequest(run=run.root, rounds=range(1), cluster="slurm"))
    slurm.switch(trouble)
    path = log(run, TRAIN_0, 101, "train round 0 epoch 1/2 ⋯  50 % 50/100 [0:05 < 0:05, 10 images/s]")
    found = run_status(run.root)
    assert found.unseen.startswith("Slurm's view is missing, this is from disk alone: squeue d")
    assert "\n" not in found.unseen
    assert [s.state for s in found.steps[:2]] == ["running", "waiting"]
    assert found.steps[0].fraction == 0.25
    os.utime(path, (time.time() - 600,) * 2)
    quiet = run_status(run.root).steps[0]
    assert (quiet.state, quiet.why) == ("failed", "perhaps: its log has been silent for 10 minutes")


def test_without_slurms_answer_a_job_that_was_queued_again_is_not_taken_for_failed(slurm, run):
    launch(LaunchRequest(run=run.root, rounds=range(1), cluster="slurm"))
    slurm.switch("down")
    stopped = ["submitit INFO (x) - Starting with JobEnvironment(y)", f"{ERROR_MARK}SIGUSR2: saved"]
    log(run, TRAIN_0, 101, *stopped, "job 101 is queued again")
    assert run_status(run.root).steps[0].waits_for == "its turn, queued again"
    log(run, TRAIN_0, 101, *stopped, "job 101 is queued again", stopped[0], "round 0: 2 ranks")
    assert run_status(run.root).steps[0].state == "running"
    log(run, TRAIN_0, 101, *stopped, "job 101 is queued again", *stopped)
    assert run_status(run.root).steps[0].state == "failed"


def test_a_held_run_is_shown_with_its_holder_and_nothing_is_written(run):
    with hold_run(run):
        before = {path: path.stat().st_mtime_ns for path in run.root.rglob("*") if "launcher" not in path.parts}
        found = run_status(run.root)
        after = {path: path.stat().st_mtime_ns for path in run.root.rglob("*") if "launcher" not in path.parts}
    assert f"process {os.getpid()} on " in found.holder
    assert before == after


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(follow, "_POLL_S", 0.05)
    monkeypatch.setattr(follow, "_SETTLE_S", 0.2)


def test_following_ends_well_when_all_is_done_with_a_line_a_change(run, quick, capsys):
    publish(run, TRAIN_0)
    publish(run, Step("evaluate", 0))
    follow.follow(run.root, range(1))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" 20")[0] for line in lines] == ["train round 0 done", "evaluate round 0 done"]


def test_following_a_submitted_chain_shows_it_and_ends_with_the_reason_of_its_failure(slurm, run, quick, monkeypatch):
    def poll(_):
        polls.append(1)
        if len(polls) == 3:
            slurm.change("101", state="RUNNING", node="n7")
        if len(polls) == 6:
            log(run, TRAIN_0, 101, f"{ERROR_MARK}no space left")
            slurm.end("101")
            slurm.change("102", reason="DependencyNeverSatisfied")
        real_sleep(0.05)

    polls, real_sleep = [], time.sleep
    monkeypatch.setattr(follow.time, "sleep", poll)
    with pytest.raises(RunError, match=r"train round 0 failed: no space left \(log: .*101_0_log.out\)"):
        launch(LaunchRequest(run=run.root, rounds=range(1), cluster="slurm", follow=True))


def test_following_goes_on_while_slurm_does_not_answer(slurm, run, quick, monkeypatch, capsys):
    monkeypatch.setattr("andscale.orchestration.status._SLURM_TIMEOUT_S", 60)  # on a busy machine, too
    launch(LaunchRequest(run=run.root, rounds=range(1), cluster="slurm"))
    for step, job in ((TRAIN_0, 101), (Step("evaluate", 0), 102)):
        os.utime(log(run, step, job, "x"), (time.time() - 600,) * 2)  # as good as dead, as far as the disk tells
    slurm.switch("down")

    def poll(_):
        shown.append(capsys.readouterr().out)
        assert len(shown) < 1000
        if len(shown) == 8:
            (slurm.root / "down").unlink()
        if "everything is seen again" in "".join(shown) and not artifacts.is_complete(run.round(0).evaluation):
            publish(run, TRAIN_0)
            publish(run, Step("evaluate", 0))
        real_sleep(0.05)

    shown, real_sleep = [], time.sleep
    monkeypatch.setattr(follow.time, "sleep", poll)
    follow.follow(run.root)
    out = "".join(shown)
    assert "Slurm's view is missing" in out
    assert out.index("Slurm's view is missing") < out.index("everything is seen again")


def test_ctrl_c_leaves_and_says_how_to_come_back(slurm, run, quick, monkeypatch, capsys):
    def interrupt(_):
        raise KeyboardInterrupt

    launch(LaunchRequest(run=run.root, rounds=range(1), cluster="slurm"))
    monkeypatch.setattr(follow.time, "sleep", interrupt)
    with pytest.raises(SystemExit) as left:
        follow.follow(run.root)
    assert left.value.code == 130
    assert (
        f"the jobs go on: .venv/bin/andscale status --run {run.root} --follow shows them again"
        in capsys.readouterr().err
    )
    assert len(slurm.jobs()) == 2


def test_a_terminal_is_redrawn_in_place_and_no_line_wraps(run):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out = Terminal()
    screen = follow.Screen(out)
    for _ in range(2):
        screen.show(run_status(run.root))
    first, second = out.getvalue().split("\x1b[J")[:2]
    height = first.count("\n")
    assert second.startswith(f"\x1b[{height}F")
    assert all(len(line.replace("\x1b[K", "")) < 80 for line in first.splitlines())


def test_cancel_ends_dependents_first_and_says_what_it_ended(slurm, run):
    launch(LaunchRequest(run=run.root, rounds=range(2), cluster="slurm"))
    slurm.change("101", state="RUNNING", node="n7")
    lines = cancel_run(run.root)
    assert slurm.jobs() == {}
    assert slurm.cancelled() == ["105", "104", "103", "102", "101"]
    assert lines[-1] == "cancelled train round 0: job 101"
    assert cancel_run(run.root) == [], "nothing running is not an error"


def test_cancel_does_not_claim_that_nothing_runs_when_slurm_does_not_answer(slurm, run):
    launch(LaunchRequest(run=run.root, rounds=range(1), cluster="slurm"))
    slurm.switch("down")
    with pytest.raises(RunError, match="squeue does not answer"):
        cancel_run(run.root)


def test_a_step_that_says_no_error_has_a_minute_to_be_seen_as_done(slurm, run, quick, monkeypatch):
    """NFS on the login node remembers that there was no manifest when the job has published it elsewhere."""
    monkeypatch.setattr(follow, "_SEEN_LATE_S", 5.0)
    publish(run, TRAIN_0)
    log(run, Step("evaluate", 0), 101, "evaluated")
    polls, real_sleep = [], time.sleep

    def poll(_):
        polls.append(1)
        real_sleep(0.05)
        if len(polls) == 10:
            publish(run, Step("evaluate", 0))

    monkeypatch.setattr(follow.time, "sleep", poll)
    follow.follow(run.root, range(1))
    assert len(polls) == 10
