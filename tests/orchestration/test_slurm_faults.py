"""What a cluster does to a run that takes days, on a real Slurm, in two minutes."""

import time

import pytest

from andscale.orchestration.steps import Step
from andscale.store.run_layout import RunLayout
from slurm_cluster import start_or_skip, wait_for
from whole_runs import assert_same_run, run_command, write_config


@pytest.fixture
def slurm():
    cluster = start_or_skip()
    yield cluster
    cluster.stop()


def _job(slurm, name):
    """(job id, state, restarts, nodes) of the newest job whose name ends so."""
    lines = slurm.run("squeue", "-h", "-t", "all", "-O", "JobID:20,Name:100,State:20,RestartCnt:10,NodeList:60")
    found = [line.split() for line in lines.splitlines() if line.split()[1].endswith(name)]
    return max(found, key=lambda words: int(words[0])) if found else None


def _has_trained(layout, number, num_epochs):
    """Whether a round's training has so many epochs behind it, and is not over."""
    metrics = layout.round(number).metrics
    return metrics.exists() and len(metrics.read_text().splitlines()) >= num_epochs


def _live(slurm):
    return set(slurm.states().values()) - {"COMPLETED", "CANCELLED", "FAILED", "NODE_FAIL"}


def _is_held(slurm):
    return "launch failed requeued held" in slurm.run("squeue", "-h", "-o", "%r")


def _is_back(slurm, node):
    """Ask for a node that is down, until it is there: Slurm refuses while it still cleans up."""
    if "down" not in slurm.run("sinfo", "-h", "-n", node, "-p", "main", "-o", "%T"):
        return True
    slurm.run("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)
    return False


@pytest.mark.timeout(1200)  # cores that other tests use too
@pytest.mark.slurm
def test_a_chain_that_is_preempted_loses_a_node_and_its_controller_ends_like_one_that_was_left_alone(
    slurm, tmp_path, digits, undisturbed
):
    config = write_config(tmp_path, digits)
    arguments = ("--rounds", "0-1", "--config", config, "--set", "optim.num_epochs=15")
    partition = ("--set", "slurm.partition=low")
    run_command(*arguments, *partition, cwd=tmp_path, env=slurm.environment)
    layout = RunLayout(tmp_path / "runs" / "tiny")

    # preempted in round 0 by a job that wants both nodes
    wait_for(lambda: _has_trained(layout, 0, 2), "round 0 to train", 120)
    started = time.monotonic()
    slurm.run("sbatch", "-p", "high", "-N", "2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 2")
    wait_for(lambda: _job(slurm, "train-0")[3] != "0", "the preempted job to be requeued", 120)
    print(f"requeued {time.monotonic() - started:.1f} s after the job that preempts it was submitted")

    # the controller is restarted
    before = len(layout.round(0).metrics.read_text().splitlines())
    wait_for(lambda: _has_trained(layout, 0, before + 1), "round 0 to go on", 120)
    slurm.controller.terminate()
    slurm.controller.wait(30)
    slurm.start_controller()

    # a node is lost in round 1, and comes back with the job's processes still on it
    wait_for(lambda: _has_trained(layout, 1, 2), "round 1 to train", 240)
    node = _job(slurm, "train-1")[4]
    slurm.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    wait_for(lambda: _job(slurm, "train-1")[3] != "0", "the job to be requeued", 60)
    wait_for(lambda: _is_back(slurm, node), "the node to come back", 60)

    wait_for(lambda: not _live(slurm) or _is_held(slurm), "the chain to end, or to be held", 480)
    if _is_held(slurm):  # Slurm started the job anew on the node that had not forgotten it: the same command again
        print("held after a failed start")
        run_command(*arguments, *partition, cwd=tmp_path, env=slurm.environment)
        slurm.wait_until_empty(timeout_s=480)
    for step in (Step("train", 0), Step("evaluate", 1)):
        assert _job(slurm, f"{step.kind}-{step.round_number}")[2] == "COMPLETED"
    assert_same_run(undisturbed(15).root, layout.root, (0, 1))
