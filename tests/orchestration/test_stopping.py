"""Jobs that are stopped, lose a rank, or have one that hangs: on this machine, and on a real Slurm."""

import json
import os
import signal
import subprocess
import time

import psutil
import pytest

import slurm_cluster
from andscale.config_file import build_config
from andscale.errors import RunError
from andscale.metrics import read_metrics
from andscale.orchestration import jobs
from andscale.orchestration.reasons import ERROR_MARK, LOST_MARK, why_it_failed
from andscale.orchestration.requeue import requeue
from andscale.orchestration.steps import Step
from andscale.store.run_layout import RunLayout
from slurm_cluster import start_or_skip, wait_for
from tiny_runs import assert_same_state, trained_state
from whole_runs import command, run_command, write_config


def _arguments(folder, digits, *, epochs=15, **resources):
    settings = [f"optim.num_epochs={epochs}", *(f"resources.{name}={value}" for name, value in resources.items())]
    sets = [word for setting in settings for word in ("--set", setting)]
    return ["--round", "0", "--config", write_config(folder, digits), "--cluster", "local", *sets]


@pytest.fixture(scope="module")
def whole(undisturbed):
    """A run of as many epochs on two ranks that nothing disturbed; read only."""
    return RunLayout(undisturbed(15).root)


class _Launched:
    """A launcher in a process group of its own, as in a terminal, whose job is some epochs far."""

    def __init__(self, folder, arguments):
        self.layout = RunLayout(folder / "runs" / "tiny")
        metrics = self.layout.round(0).metrics
        before = metrics.stat().st_size if metrics.exists() else 0
        self.process = subprocess.Popen(
            command(*arguments),
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
            # where the tests run in the background, the shell has set SIGINT to be ignored
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        wait_for(lambda: metrics.exists() and metrics.stat().st_size > before, "an epoch's end", 60)
        record = json.loads(self.layout.round(0).job_record("train").read_text())
        self.job = psutil.Process(int(record["job_id"]))
        tasks = {int(task.environ()["SUBMITIT_LOCAL_GLOBALID"]): task for task in self.job.children()}
        self.ranks = [tasks[rank] for rank in (0, 1)]

    def end(self, timeout_s=60):
        """(exit code, standard error, seconds until then); nothing of the job is left."""
        started, family = time.monotonic(), [self.job, *self.ranks]
        _, said = self.process.communicate(timeout=timeout_s)
        seconds = time.monotonic() - started
        _, alive = psutil.wait_procs(family, timeout=5)
        assert not alive
        return self.process.returncode, said, seconds


def _checkpoints(layout):
    return sorted(path.name for path in layout.round(0).checkpoints.iterdir())


def test_ctrl_c_saves_a_checkpoint_and_the_same_command_goes_on_from_it(tmp_path, digits, whole):
    arguments = _arguments(tmp_path, digits)
    launched = _Launched(tmp_path, arguments)
    launched.ranks[0].suspend()  # a job that takes its time to save: submitit's controller would kill it after 1 s
    os.killpg(launched.process.pid, signal.SIGINT)  # as a terminal does: to the launcher and all of its job
    time.sleep(3)
    launched.ranks[0].resume()
    code, said, seconds = launched.end()
    assert code == 130
    assert seconds < 30
    assert "train round 0: saving a checkpoint, for up to 60 s; Ctrl-C again ends it at once" in said
    log = next(launched.layout.round(0).logs("train").glob("*_1_log.out")).read_text()
    place = log.split("stopped at round 0, epoch ")[1].split(";")[0].split(", step ")
    name = f"epoch-{int(place[0]):04d}" + (f"-step-{int(place[1]):06d}" if int(place[1]) else "")
    assert _checkpoints(launched.layout)[-1] == name
    run_command(*arguments, cwd=tmp_path)
    assert_same_state(trained_state(whole, 0), trained_state(launched.layout, 0))


def test_a_second_ctrl_c_ends_the_job_at_once(tmp_path, digits):
    launched = _Launched(tmp_path, _arguments(tmp_path, digits, epochs=200))
    launched.ranks[0].suspend()  # so that it takes for ever
    launched.process.send_signal(signal.SIGTERM)  # what a service manager sends is Ctrl-C too
    time.sleep(1)
    assert launched.process.poll() is None
    launched.process.send_signal(signal.SIGINT)
    code, _, seconds = launched.end()
    assert code == 130
    assert seconds < 5


def test_the_warning_before_a_limit_stops_the_job_and_its_controller_starts_it_again(tmp_path, digits, whole):
    launched = _Launched(tmp_path, _arguments(tmp_path, digits))
    launched.ranks[1].send_signal(signal.SIGUSR2)  # one rank is hit alone
    launched.ranks[1].send_signal(signal.SIGTERM)
    code, said, _ = launched.end(120)
    assert code == 0, said
    log = next(launched.layout.round(0).logs("train").glob("*_0_log.out")).read_text()
    assert log.count("Starting with JobEnvironment(") == 2
    assert log.count(f"{ERROR_MARK}stopped at round 0, epoch ") == 1
    assert_same_state(trained_state(whole, 0), trained_state(launched.layout, 0))


def test_a_killed_rank_ends_the_others_and_is_named(tmp_path, digits):
    launched = _Launched(tmp_path, _arguments(tmp_path, digits, epochs=200))
    launched.ranks[1].kill()
    code, said, seconds = launched.end()
    assert code == 1
    assert seconds < 10
    assert "error: train round 0 failed: rank 1 was killed, or hung, without a word (is memory short?); rank 0" in said
    assert "_1_log.out)" in said


def test_a_rank_that_is_killed_while_it_starts_ends_the_others(tmp_path, digits):
    launcher = subprocess.Popen(
        command(*_arguments(tmp_path, digits)), cwd=tmp_path, stderr=subprocess.PIPE, text=True, process_group=0
    )
    logs = RunLayout(tmp_path / "runs" / "tiny").round(0).logs("train")
    wait_for(lambda: list(logs.glob("*_1_log.out")), "rank 1 to be started", 60)
    controller = psutil.Process(int(next(logs.glob("*_1_log.out")).name.split("_")[0]))
    wait_for(lambda: len(controller.children()) == 2, "both ranks")
    next(task for task in controller.children() if task.environ()["SUBMITIT_LOCAL_GLOBALID"] == "1").kill()
    _, said = launcher.communicate(timeout=60)  # the other one would wait for hang_timeout_min = 10
    assert launcher.returncode == 1
    assert (
        "rank 1 was killed, or hung, without a word (is memory short?); rank 0: another rank of the job ended" in said
    )


def test_a_rank_that_hangs_is_given_up_after_the_timeout_and_named(tmp_path, digits):
    launched = _Launched(tmp_path, _arguments(tmp_path, digits, epochs=200, hang_timeout_min=0.1))
    launched.ranks[0].suspend()
    code, said, seconds = launched.end()
    assert code == 1
    assert 5 < seconds < 25
    assert "error: train round 0 failed: rank 0 was killed, or hung, without a word (is memory short?); rank 1" in said


def test_the_reason_is_that_of_the_rank_that_failed_and_of_the_last_attempt(tmp_path):
    start = "submitit INFO (2026) - Starting with JobEnvironment(job_id=7)\n"
    own, lost = f"{ERROR_MARK}shard 3 is damaged\n", f"{LOST_MARK}rank 0 lost another rank: Connection closed by peer\n"
    logs = [tmp_path / f"7_{rank}_log.out" for rank in range(11)]
    for log in logs:
        log.write_text(f"{start}{ERROR_MARK}of an earlier attempt\n{start}{lost}")
    assert why_it_failed(tmp_path, "7") == f"rank 0 lost another rank: Connection closed by peer (log: {logs[0]})"
    logs[10].write_text(f"{start}{own}Traceback\n")
    assert why_it_failed(tmp_path, "7") == f"shard 3 is damaged (log: {logs[10]})"
    logs[10].write_text(f"{start}round 0\n")
    assert why_it_failed(tmp_path, "7").startswith("rank 10 was killed, or hung, without a word (is memory short?); ")
    assert why_it_failed(tmp_path, "8") == f"it ended without a word (log: {tmp_path / '8_0_log.out'})"


@pytest.mark.parametrize(
    ("restarts", "answer", "message"),
    [
        (3, 0, "job 4711 was requeued 3 times, and resources.max_requeues = 3: launch again to go on, with a longer"),
        (2, 1, "job 4711 could not be requeued (no controller): launch again to go on"),
    ],
)
def test_a_job_that_cannot_be_requeued_says_so(tmp_path, monkeypatch, restarts, answer, message):
    environment = {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "4711", "SLURM_PROCID": "0"}
    for name, value in {**environment, "SLURM_RESTART_COUNT": str(restarts), "PATH": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho no controller >&2\nexit {answer}\n")
    (tmp_path / "scontrol").chmod(0o755)
    with pytest.raises(RunError) as caught:
        requeue(3)
    assert str(caught.value).startswith(message)


@pytest.fixture
def warned(monkeypatch, tmp_path):
    """A function of a step, a rank and whether Slurm preempts: the rank's job, warned while it works; returns with
    what it asked ``requeue`` for.
    """
    asked, config = [], build_config({"data": {"dataset": "x"}, "resources": {"max_requeues": 7}}, "test")

    def requeue(max_requeues):
        asked.append(max_requeues)
        raise SystemExit(0)

    def warn(step, rank, is_preempted):
        for name, value in {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "4711", "SLURM_PROCID": str(rank)}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(jobs, "is_preempted", lambda: is_preempted)
        jobs.StepJob(tmp_path, step, launched=config)()

    monkeypatch.setattr(jobs, "requeue", requeue)
    monkeypatch.setattr(jobs, "run_step", lambda *_: os.kill(os.getpid(), signal.SIGUSR2))
    monkeypatch.setattr(jobs.StepJob, "_enter_world", lambda *_: None)
    before = signal.getsignal(signal.SIGUSR2)
    yield warn, asked
    signal.signal(signal.SIGUSR2, before)


def test_an_index_job_that_is_preempted_is_queued_again_at_once_by_its_rank_0(warned):
    warn, asked = warned
    warn(Step("index", 1), 1, is_preempted=True)
    assert asked == []
    with pytest.raises(SystemExit) as caught:
        warn(Step("index", 1), 0, is_preempted=True)
    assert (asked, caught.value.code) == ([7], 0)


def test_an_evaluation_that_is_out_of_time_ends_with_one_line_and_is_not_queued_again(warned, capsys):
    warn, asked = warned
    with pytest.raises(RunError):
        warn(Step("evaluate", 1), 0, is_preempted=False)
    assert asked == []
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{ERROR_MARK}evaluate round 1 did not finish within its time limit, and saves nothing on")
    assert "(on Slurm [slurm.evaluate] timeout_min), or with more ranks (resources.evaluate_tasks_per_node)" in line


@pytest.fixture(scope="module")
def slurm():
    """A Slurm whose partition ``high`` takes nodes from ``low``, with 20 s of grace that begin with SIGTERM."""
    with pytest.MonkeyPatch.context() as patch:
        warning = "SlurmctldParameters=preempt_send_user_signal\n"
        assert warning in slurm_cluster._CONF
        patch.setattr(slurm_cluster, "_CONF", slurm_cluster._CONF.replace(warning, ""))
        cluster = start_or_skip()
    yield cluster
    cluster.stop()


def _submit(slurm, folder, arguments):
    """(the run's layout, the training job's id)."""
    arguments[arguments.index("local")] = "slurm"
    run_command(*arguments, "--set", "slurm.partition=low", cwd=folder, env=slurm.environment)
    layout = RunLayout(folder / "runs" / "tiny")
    return layout, json.loads(layout.round(0).job_record("train").read_text())["job_id"]


@pytest.mark.slurm
def test_a_job_that_is_warned_and_then_preempted_is_requeued_twice_and_ends_as_if_it_had_not(
    slurm, tmp_path, digits, whole
):
    layout, job = _submit(slurm, tmp_path, _arguments(tmp_path, digits))
    folder = layout.round(0)
    log = folder.logs("train") / f"{job}_0_log.out"

    def num_epochs():
        return len(read_metrics(folder.metrics)) if folder.metrics.exists() else 0

    wait_for(lambda: num_epochs() > 0, "the first epoch", 90)
    for number, interrupt in enumerate((("scancel", "--signal=USR2", job), _URGENT), start=1):
        wait_for(lambda n=number: log.read_text().count("round 0: 2 ranks") == n, "the job's start", 90)
        started = time.monotonic()
        slurm.run(*interrupt)
        wait_for(lambda n=number: log.read_text().count("stopped at round 0, epoch ") == n, "a checkpoint", 60)
        saved = time.monotonic() - started
        wait_for(lambda n=number: log.read_text().count(f"job {job} is queued again") == n, "the requeue", 60)
        print(f"{interrupt[0]}: saved after {saved:.1f} s, requeued after {time.monotonic() - started:.1f} s")
        assert time.monotonic() - started < 60
    slurm.wait_until_empty(timeout_s=200)
    assert slurm.states()[job] == "COMPLETED"
    assert log.read_text().count("Starting with JobEnvironment(") == 3
    assert_same_state(trained_state(whole, 0), trained_state(layout, 0))


_URGENT = ("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true")


@pytest.mark.slurm
def test_a_rank_that_hangs_ends_its_job_on_slurm_too(slurm, tmp_path, digits):
    layout, job = _submit(slurm, tmp_path, _arguments(tmp_path, digits, epochs=400, hang_timeout_min=0.1))
    wait_for(layout.round(0).metrics.exists, "the first epoch", 90)
    logs = str(layout.round(0).logs("train").resolve())
    tasks = [task for task in psutil.process_iter(["cmdline"]) if task.info["cmdline"][-2:] == [_SUBMITTED, logs]]
    (hanging,) = [task for task in tasks if task.environ()["SLURM_PROCID"] == "1"]
    hanging.suspend()
    started = time.monotonic()
    wait_for(lambda: slurm.states()[job] not in ("RUNNING", "COMPLETING"), "the job's end", 60)
    print(f"ended {time.monotonic() - started:.1f} s after a rank hung, of which 6 s are hang_timeout_min")
    assert slurm.states()[job] == "FAILED"
    reason = why_it_failed(layout.round(0).logs("train"), job)
    assert reason.startswith("rank 0 lost another rank: ")  # srun wakes rank 1 to end it, and it says the same
    # gloo has two words for it, by which of its threads sees it first
    assert any(words in reason for words in ("Timed out", "Application timeout"))


_SUBMITTED = "submitit.core._submit"
