import json
import os
import shutil
import subprocess
import sys

import pytest

from andscale.config_file import build_config
from andscale.orchestration.slurm import sbatch_script
from andscale.orchestration.slurm_queue import job_comment
from andscale.orchestration.steps import Step
from andscale.store.run_layout import RunLayout
from andscale.store.run_record import load_run
from golden import assert_golden
from slurm_cluster import start_or_skip, wait_for
from whole_runs import assert_same_run, run_command, write_config


@pytest.fixture(scope="module")
def slurm():
    cluster = start_or_skip()
    yield cluster
    cluster.stop()


SITE = {
    "data": {"dataset": "data/x"},
    "resources": {
        "num_nodes": 2, "tasks_per_node": 4, "gpus_per_node": 4, "cpus_per_task": 8, "memory_gb": 256,
        "timeout_min": 2880,
    },
    "slurm": {
        "partition": "gpu", "account": "vision", "qos": "high", "constraint": "a100|h100", "timeout_min": 1440,
        "setup": ["module load cuda/12.4", "export NCCL_DEBUG=WARN"],
        "srun_args": ["--container-image=/images/torch.sqsh", "--mpi=none"],
        "additional": {"exclusive": True, "nice": 100},
        "index": {
            "partition": "cpu", "gpus_per_node": 0, "cpus_per_task": 64, "memory_gb": 0.5, "additional": {"nice": 0},
        },
        "evaluate": {"qos": "short", "timeout_min": 60, "setup": ["module load cuda/12.1"], "srun_args": []},
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", ["index", "train", "evaluate"])
def test_the_sbatch_script_is_as_recorded(kind):
    from pathlib import Path

    after = [] if kind == "index" else ["4711"]
    script = sbatch_script(RunLayout(Path("runs/demo")), Step(kind, 1), build_config(SITE, "test"), after)
    comment = job_comment(RunLayout(Path("runs/demo")), Step(kind, 1))
    for found, shown in ((sys.executable, "<python>"), (str(Path.cwd()), "<here>"), (comment.split(":")[1], "<run>")):
        script = script.replace(found, shown)
    assert_golden(f"sbatch-{kind}.txt", script)


@pytest.mark.slurm
@pytest.mark.timeout(600)  # two whole runs
def test_a_whole_run_on_a_real_slurm_equals_the_one_on_this_machine(slurm, tmp_path, digits):
    for name in ("local", "slurm"):
        (tmp_path / name).mkdir()
    config = write_config(tmp_path, digits, 2)
    # three blocks of samples: the index job's two nodes share them
    arguments = ("--rounds", "0-1", "--config", config, "--set", "data.max_train_samples=1100")
    two_nodes = ("--set", "resources.index_num_nodes=2")
    output = run_command(*arguments, *two_nodes, cwd=tmp_path / "slurm", env=slurm.environment)  # --cluster auto
    assert "train round 0: job " in output
    assert ", after job " in output
    again = run_command(*arguments, "--follow", cwd=tmp_path / "slurm", env=slurm.environment)
    assert again.count(" is there already") == 5, "live jobs are found, not submitted twice"
    assert len(slurm.states()) == 5
    for step in ("train round 0", "index round 1", "evaluate round 1"):
        assert f"\n{step} done 2" in again
    assert "round 1 is complete" in again
    slurm.wait_until_empty(timeout_s=30)
    assert set(slurm.states().values()) == {"COMPLETED"}
    logs = RunLayout(tmp_path / "slurm" / "runs" / "tiny").round(1).logs("index")
    assert any("cpu float32 on 2 ranks" in log.read_text() for log in logs.glob("*_0_log.out"))
    run = tmp_path / "slurm" / "runs" / "tiny"
    for step in (Step("train", 0), Step("evaluate", 0)):
        logs = RunLayout(run).round(0).logs(step.kind)
        submitted = next(logs.glob("*_submission.sh")).read_text()
        after = [next(RunLayout(run).round(0).logs("train").glob("*_submission.sh")).name.split("_")[0]]
        shown = sbatch_script(RunLayout(run), step, load_run(run).config, after if step.kind == "evaluate" else [])
        assert shown == submitted, "a dry run shows what is submitted"
    done = run_command("--round", "1", cwd=tmp_path / "slurm", env=slurm.environment)
    assert "round 1 is complete" in done

    run_command(*arguments, "--cluster", "local", cwd=tmp_path / "local", env=slurm.environment)
    assert_same_run(tmp_path / "local" / "runs" / "tiny", tmp_path / "slurm" / "runs" / "tiny", (0, 1))


@pytest.mark.slurm
def test_jobs_behind_a_failed_one_are_cancelled_and_a_new_launch_makes_them_again(slurm, tmp_path, digits):
    config = write_config(tmp_path, digits)
    arguments = ("--round", "0", "--config", config)
    known = set(slurm.states())
    # the data set is changed under the run between launch and start: the job itself notices
    broken = tmp_path / "data"
    broken.symlink_to(digits.root)
    config.write_text(config.read_text().replace(str(digits.root), str(broken)))
    slurm.run("scontrol", "update", "PartitionName=main", "State=DOWN")
    run_command(*arguments, cwd=tmp_path, env=slurm.environment)
    record = tmp_path / "runs" / "tiny" / "run.json"
    healthy = record.read_text()
    record.write_text(healthy.replace(digits.fingerprint, "0" * 64))
    slurm.run("scontrol", "update", "PartitionName=main", "State=UP")
    slurm.wait_until_empty(timeout_s=60)
    states = {job: state for job, state in slurm.states().items() if job not in known}
    assert sorted(states.values()) == ["CANCELLED", "FAILED"]
    log = next((tmp_path / "runs/tiny/rounds/00/jobs/train").glob("*_0_log.out")).read_text()
    assert "andscale error: " in log
    assert "is not the data set that this run was started with" in log

    record.write_text(healthy)
    run_command(*arguments, cwd=tmp_path, env=slurm.environment)
    slurm.wait_until_empty(timeout_s=100)
    assert "round 0 is complete" in run_command(*arguments, cwd=tmp_path, env=slurm.environment)


@pytest.mark.slurm
def test_a_lost_answer_leads_to_no_second_job_and_a_running_chain_is_shown_and_cancelled(slurm, tmp_path, digits):
    config = write_config(tmp_path, digits)
    arguments = ("--rounds", "0-1", "--config", config, "--set", "optim.num_epochs=500")
    known = set(slurm.states())
    (tmp_path / "bin").mkdir()
    real = shutil.which("sbatch", path=slurm.environment["PATH"])
    (tmp_path / "bin" / "sbatch").write_text(f'#!/bin/sh\n{real} "$@" > /dev/null\nexit 1\n')
    (tmp_path / "bin" / "sbatch").chmod(0o755)
    deaf = slurm.environment | {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{slurm.environment['PATH']}"}
    output = run_command(*arguments, cwd=tmp_path, env=deaf)
    assert output.count("sbatch's answer was lost") == 5
    run = tmp_path / "runs" / "tiny"

    def shown():
        code = "from andscale.cli import main; main()"
        line = [sys.executable, "-c", code, "status", "--run", str(run), "--json"]
        env = os.environ | slurm.environment
        answer = subprocess.run(line, env=env, capture_output=True, text=True, check=True)
        return json.loads(answer.stdout)["steps"]

    assert "is there already" in run_command(*arguments, cwd=tmp_path, env=slurm.environment)
    assert len(set(slurm.states()) - known) == 5
    wait_for(lambda: shown()[0]["fraction"], "progress of the first step", timeout_s=60)
    first, second, *_ = shown()
    assert (first["state"], first["node"], first["doing"][:20]) == ("running", "127.0.0.1", "train round 0 epoch ")
    assert (second["state"], second["waits_for"]) == ("waiting", "train round 0")
    line = [sys.executable, "-c", "from andscale.cli import main; main()", "cancel", "--run", str(run)]
    said = subprocess.run(line, env=os.environ | slurm.environment, capture_output=True, text=True, check=True).stdout
    assert said.count("cancelled ") == 5
    states = {job: state for job, state in slurm.states().items() if job not in known}
    assert set(states.values()) == {"CANCELLED"}
