"""A job that should have GPUs and sees none: it ends on Slurm, and says so on a machine that may have none."""

from pathlib import Path

import pytest
import torch

from andscale.config_file import build_config
from andscale.distributed import missing_gpus
from andscale.errors import UsageError
from andscale.orchestration import jobs
from andscale.orchestration.reasons import ERROR_MARK
from andscale.orchestration.steps import Step

STEP = Step("evaluate", 1)


def _config(**sections):
    return build_config({"data": {"dataset": "x"}, **sections}, "test")


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    """No GPU is seen by torch, whatever this machine has, and Slurm gave nothing."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("SLURM_GPUS_ON_NODE", "SLURM_JOB_GPUS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("asked", "environment", "words"),
    [
        (None, {}, None),
        (None, {"SLURM_GPUS_ON_NODE": "0", "SLURM_JOB_GPUS": ""}, None),
        (0, {"SLURM_GPUS_ON_NODE": "4"}, None),
        (None, {"SLURM_GPUS_ON_NODE": "4"}, "though Slurm gave this job some: torch "),
        (None, {"SLURM_JOB_GPUS": "0,1"}, "though Slurm gave this job some: torch "),
        (4, {}, "though this launch asks for 4 a node: torch "),
    ],
)
def test_gpus_are_missed_where_some_were_asked_for_or_given(monkeypatch, asked, environment, words):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = missing_gpus(asked)
    assert found is None if words is None else words in found


@pytest.mark.parametrize(
    ("built_for", "words"),
    [("13.0", "is built for CUDA 13.0, and the driver may be too old for that"), (None, "is for CPUs alone")],
)
def test_it_is_said_for_what_torch_is_built(monkeypatch, built_for, words):
    monkeypatch.setattr(torch.version, "cuda", built_for)
    assert missing_gpus(1).endswith(words)


def test_no_gpu_is_missed_where_torch_sees_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert missing_gpus(4) is None


@pytest.fixture
def ran(monkeypatch):
    """Steps that jobs came to run."""
    steps = []
    monkeypatch.setattr(jobs, "run_step", lambda run, step, *_: steps.append(step))
    monkeypatch.setattr(jobs.StepJob, "_enter_world", lambda *_: None)
    monkeypatch.setattr(jobs.StepJob, "_leave_at_signals", lambda *_: None)
    monkeypatch.setattr(jobs, "_die_with_parent", lambda: None)
    monkeypatch.setattr(jobs, "_leave_if_a_rank_is_gone", lambda: None)
    return steps


def test_a_job_on_slurm_that_lost_its_gpus_ends_with_one_line(monkeypatch, tmp_path, capsys, ran):
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "4")
    with pytest.raises(UsageError):
        jobs.StepJob(tmp_path, STEP, launched=_config())()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{ERROR_MARK}torch sees no GPU, though Slurm gave this job some: torch ")
    assert line.endswith("or launch with resources.gpus_per_node = 0 to run on the CPU")
    assert not ran


def test_a_job_on_a_machine_without_gpus_goes_on_and_rank_0_says_so(monkeypatch, tmp_path, capsys, ran):
    for name, value in {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": "7"}.items():
        monkeypatch.setenv(name, value)
    for rank in ("0", "1"):
        monkeypatch.setenv("SUBMITIT_LOCAL_GLOBALID", rank)
        jobs.StepJob(tmp_path, STEP, local_port=1, launched=_config(resources={"gpus_per_node": 4}))()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("evaluate round 1 runs on the CPU: torch sees no GPU, though this launch asks for 4 a node")
    assert ran == [STEP, STEP]


@pytest.mark.parametrize(
    ("sections", "train", "index"),
    [
        ({}, None, None),
        ({"resources": {"gpus_per_node": 2}, "slurm": {"gpus_per_node": 4, "index": {"gpus_per_node": 0}}}, 4, 0),
        ({"resources": {"gpus_per_node": 0}, "slurm": {"gpus_per_node": 4}}, 0, 0),
    ],
)
def test_a_job_knows_how_many_gpus_its_own_step_asks_for(sections, train, index):
    config = _config(**sections)
    found = [jobs.StepJob(Path("x"), Step(kind, 1), launched=config)._gpus_asked() for kind in ("train", "index")]
    assert found == [train, index]
