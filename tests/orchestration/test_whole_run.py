import json
import os
import signal
import subprocess
import sys
import time

import duckdb
import pandas as pd
import psutil
import pytest
from sklearn.datasets import load_digits

from andscale.store import artifacts
from andscale.store.neighbourhoods import read_table
from andscale.store.run_layout import RunLayout
from slurm_cluster import wait_for
from whole_runs import assert_same_run, command, run_command, write_config

LOCAL = ("--cluster", "local")


@pytest.fixture(scope="module")
def finished(undisturbed):
    """A folder with a whole run of two rounds on two ranks; read only. And what the launch printed."""
    run = undisturbed(3)
    return run.folder, run.output


def test_a_whole_run_leaves_every_artefact_complete_and_verified(finished):
    folder, output = finished
    layout = RunLayout(folder / "runs" / "tiny")
    for number in (0, 1):
        expected = {"memory": "memory", "model": "model", "evaluation": "evaluation"}
        expected |= {"neighbourhoods": "neighbourhoods", "index": "index"} if number else {}
        for name, kind in expected.items():
            manifest = artifacts.verify(layout.round(number).root / name, kind)
            assert manifest.provenance.config_hash == json.loads(layout.record.read_text())["config_hash"]
        assert artifacts.load_manifest(layout.round(number).memory, "memory").num_rows == 301
        assert len(list(layout.round(number).memory.glob("*.parquet"))) == 2, "one file a rank"
        assert artifacts.load_manifest(layout.round(number).evaluation, "evaluation").figures["world_size"] == 2
    assert "round 0 is complete\nround 1 is complete" in output
    header = next(line for line in output.splitlines() if line.startswith("round  "))
    for column in ("anchors", "purity of anchors", "purity of all", "entropy q25/q50/q75", "kNN accuracy", "train s"):
        assert column in header


def test_parents_lead_from_the_evaluation_back_to_the_data_set(finished):
    layout = RunLayout(finished[0] / "runs" / "tiny")
    model = artifacts.load_manifest(layout.round(1).model, "model")
    assert set(model.provenance.parents) == {
        "dataset",
        "rounds/00/memory",
        "rounds/00/model",
        "rounds/01/neighbourhoods",
    }
    evaluation = artifacts.load_manifest(layout.round(1).evaluation, "evaluation")
    assert evaluation.provenance.parents == {"rounds/01/model": model.digest}


def test_the_index_answers_with_sample_ids(finished):
    import faiss
    import numpy as np

    from andscale.store.features import read_features

    layout = RunLayout(finished[0] / "runs" / "tiny")
    index = faiss.read_index(str(layout.round(1).index / "index.faiss"))
    memory, _ = read_features(layout.round(0).memory)
    _, ids = index.search(memory, 1)
    np.testing.assert_array_equal(ids[:, 0], np.arange(301))


def test_duckdb_and_pandas_read_every_parquet_file(finished):
    files = sorted((finished[0] / "runs").rglob("*.parquet"))
    assert len(files) > 10
    for path in files:
        quoted = str(path).replace("'", "''")
        (count,) = duckdb.sql(f"select count(*), count(distinct sample_id) from '{quoted}'").fetchall()
        assert count[0] == count[1] == len(pd.read_parquet(path))


def test_launching_a_complete_round_again_runs_nothing(finished):
    folder, _ = finished
    before = {p: p.stat().st_mtime_ns for p in (folder / "runs").rglob("*") if p.is_file()}
    output = run_command("--round", "1", *LOCAL, cwd=folder)
    assert "round 1 is complete" in output
    assert before == {p: p.stat().st_mtime_ns for p in (folder / "runs").rglob("*") if p.is_file()}


def test_the_newest_round_is_inspected_by_default(finished):
    folder, _ = finished
    text = run_command(cwd=folder, door="tools/inspect_neighbours.py")
    assert "round 1: 301 samples, k = 1" in text
    figures = json.loads(run_command("--json", cwd=folder, door="tools/inspect_neighbours.py"))
    groups = {g["name"]: g for g in figures["groups"]}
    assert groups["anchors"]["num_samples"] == 301 // 4
    assert groups["all"]["num_samples"] == 301
    table, _ = read_table(folder / "runs" / "tiny" / "rounds" / "01" / "neighbourhoods")
    labels = load_digits().target[:301]
    same = [labels[table.neighbour_ids[i, 0]] == labels[i] for i in range(301)]
    assert groups["all"]["purity_at_1"] == pytest.approx(sum(same) / 301)
    anchors = [s for s, anchor in zip(same, table.is_anchor, strict=True) if anchor]
    assert groups["anchors"]["purity_at_1"] == pytest.approx(sum(anchors) / len(anchors))
    assert groups["anchors"]["entropy_nats"][2] <= groups["instances"]["entropy_nats"][0]


def test_a_dry_run_shows_what_is_left_and_does_nothing(finished):
    folder, _ = finished
    output = run_command("--rounds", "0-2", *LOCAL, "--dry-run", cwd=folder)
    steps = [line.strip() for line in output.splitlines()[1:]]
    assert steps == ["index round 2", "train round 2, after index round 2", "evaluate round 2, after train round 2"]
    assert not (folder / "runs" / "tiny" / "rounds" / "02").exists()


def test_a_failed_step_says_why_in_one_line_and_where_its_log_is(finished, tmp_path, digits):
    import shutil

    shutil.copytree(finished[0] / "runs", tmp_path / "runs")
    path = next((tmp_path / "runs" / "tiny" / "rounds" / "01" / "memory").glob("*00001-of*"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)  # of the same size: the job that reads it finds it
    answer = subprocess.run(command("--round", "2", *LOCAL), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert answer.returncode == 1
    (line,) = [text for text in answer.stderr.splitlines() if text.startswith("error: ")]
    assert line.startswith("error: index round 2 failed: ")
    assert f"{path.name} does not have the hash of its record: it is damaged (log: " in line
    assert not (tmp_path / "runs" / "tiny" / "rounds" / "02" / "neighbourhoods").exists()
    shown = json.loads(andscale("status", "--run", "runs/tiny", "--json", cwd=tmp_path))
    (failed,) = [step for step in shown["steps"] if step["state"] == "failed"]
    assert (failed["step"], failed["round"]) == ("index", 2)
    assert f"{path.name} does not have the hash of its record" in failed["why"]
    assert failed["log"] in line

    # rounds 0 and 1 as they were: the memory is made again of the last checkpoint, and round 2 goes on
    output = run_command("--rounds", "1-1", "--rebuild", *LOCAL, cwd=tmp_path)
    assert "train round 1 is made again: " in output
    assert_same_run(finished[0] / "runs" / "tiny", tmp_path / "runs" / "tiny", (1,))
    assert {state for _, state in steps_of(tmp_path)[:5]} == {"done"}


def andscale(*arguments, cwd):
    """The console script."""
    code = "from andscale.cli import main; main()"
    answer = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def steps_of(folder):
    """(step and round, state) of all steps of the run."""
    shown = json.loads(andscale("status", "--run", "runs/tiny", "--json", cwd=folder))
    return [(f"{step['step']} {step['round']}", step["state"]) for step in shown["steps"]]


def test_a_run_on_this_machine_is_shown_from_another_terminal_and_cancelled_from_there(tmp_path, digits):
    config = write_config(tmp_path, digits)
    arguments = ("--round", "0", "--config", config, "--set", "optim.num_epochs=500", *LOCAL)
    launcher = subprocess.Popen(command(*arguments), cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    record = tmp_path / "runs" / "tiny" / "rounds" / "00" / "jobs" / "train.json"
    wait_for(record.exists, "the job's record")
    job = json.loads(record.read_text())["job_id"]
    shown = andscale("status", "--run", "runs/tiny", cwd=tmp_path)
    assert f"launching now: process {launcher.pid} on " in shown
    assert f"process {job}" in next(line for line in shown.splitlines() if line.startswith("train round 0"))
    assert steps_of(tmp_path)[:2] == [("train 0", "running"), ("evaluate 0", "absent")]
    assert f"cancelled train round 0: process {job}" in andscale("cancel", "--run", "runs/tiny", cwd=tmp_path)
    _, said = launcher.communicate(timeout=30)
    assert launcher.returncode == 1
    assert "train round 0 failed" in said
    assert "nothing of runs/tiny waits or runs" in andscale("cancel", "--run", "runs/tiny", cwd=tmp_path)


def test_a_second_launcher_is_told_who_holds_the_run(finished, tmp_path):
    import shutil

    from andscale.orchestration.holding import hold_run

    shutil.copytree(finished[0] / "runs", tmp_path / "runs")
    with hold_run(RunLayout(tmp_path / "runs" / "tiny")):
        answer = subprocess.run(
            command("--round", "2", *LOCAL), cwd=tmp_path, capture_output=True, text=True, check=False
        )
    assert answer.returncode == 1
    assert f"is held by another launcher: process {os.getpid()} on " in answer.stderr


def test_ctrl_c_in_the_launcher_ends_its_job_too(tmp_path, digits):
    config = write_config(tmp_path, digits)
    launcher = subprocess.Popen(
        command("--round", "0", "--config", config, *LOCAL),
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        # where the tests run in the background, the shell has set SIGINT to be ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    record = tmp_path / "runs" / "tiny" / "rounds" / "00" / "jobs" / "train.json"
    wait_for(record.exists, "the job's record")
    job = psutil.Process(int(json.loads(record.read_text())["job_id"]))
    time.sleep(1.5)
    family = [job, *job.children(recursive=True)]
    assert len(family) == 3, "the controller and two ranks"
    launcher.send_signal(signal.SIGINT)  # to the launcher alone, not to its group
    _, said = launcher.communicate(timeout=20)
    assert launcher.returncode == 130
    assert said.splitlines()[-1].startswith("error: stopped; the same command goes on from what is done")
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive


def test_a_launcher_that_finds_a_live_job_waits_for_it(finished, tmp_path, digits):
    config = write_config(tmp_path, digits)
    arguments = ("--round", "0", "--config", config, *LOCAL)
    launcher = subprocess.Popen(command(*arguments), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    record = tmp_path / "runs" / "tiny" / "rounds" / "00" / "jobs" / "train.json"
    wait_for(record.exists, "the job's record")
    time.sleep(0.5)
    launcher.kill()
    job = psutil.Process(int(json.loads(record.read_text())["job_id"]))
    assert job.is_running()
    output = run_command(*arguments, cwd=tmp_path)
    assert f"train round 0: found running (process {job.pid})" in output
    assert len(list((tmp_path / "runs/tiny/rounds/00/jobs/train").glob("*_submitted.pkl"))) == 1
