"""The doctor: each look judges what it finds, and the whole comes in one screen."""

import json
import os
import resource
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest

import reference
from andscale.cli import call
from andscale.doctor import cluster, collectives, disk, examine, search, software
from andscale.doctor.children import answers_of
from andscale.doctor.finding import ok, problem, warning
from andscale.indexing.faiss_health import FaissBuild, cuda_of, difference, libraries_twice
from andscale.indexing.faiss_index import build_flat
from slurm_cluster import start_or_skip

ROOT = Path(__file__).resolve().parents[1]
GIB = 2**30


@pytest.fixture(scope="module")
def searched():
    rows = reference.unit_rows(np.random.default_rng(3), 500, 16)
    return rows, rows[:20], build_flat(rows).search(rows[:20], 5)


def test_a_right_answer_is_right_with_ties_in_another_order_too(searched):
    rows, queries, (scores, ids) = searched
    assert difference(rows, queries, (scores, ids), (scores + 1e-4, ids.copy())) == ""
    twins = np.concatenate([rows, rows[:20]])
    expected = build_flat(twins).search(queries, 5)
    swapped = expected[0].copy(), expected[1].copy()
    swapped[1][:, [0, 1]] = expected[1][:, [1, 0]]
    assert (swapped[1] != expected[1]).any()
    assert difference(twins, queries, expected, swapped) == ""


def _another(scores, ids):
    """The second best for the best, with the similarity that it has."""
    scores[3, :4], ids[3, :4] = scores[3, 1:].copy(), ids[3, 1:].copy()
    ids[3, 4], scores[3, 4] = -1, 0


def _put(row, place, score=None, number=None):
    def change(scores, ids):
        if score is not None:
            scores[row, place] = score
        if number is not None:
            ids[row, place] = number

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_put(0, 0, score=0.5), "similarities are not those of their ids for 1 of 20"),
        (_put(0, 0, score=np.nan), "1 of 100 similarities are not finite"),
        (_put(0, 0, number=-1), "1 of 100 ids are of no vector"),
        (_put(0, 0, number=500), "1 of 100 ids are of no vector"),
        (_put(0, 4, number=499), "similarities are not those of their ids"),
        (_another, "1 of 100 ids are of no vector"),
        (lambda scores, ids: ids.__setitem__(slice(None), 0), "not those of their ids"),
        (lambda scores, ids: scores.__setitem__(slice(None), 0), "not those of their ids"),
    ],
)
def test_a_wrong_answer_of_a_gpu_is_found(searched, change, words):
    rows, queries, (scores, ids) = searched
    found = scores.copy(), ids.copy()
    change(*found)
    assert words in difference(rows, queries, (scores, ids), found)


def test_vectors_that_are_near_and_not_the_nearest_are_found(searched):
    """Wrong ids with their own right similarities: what a damaged index or kernel gives."""
    rows, queries, expected = searched
    scores, ids = build_flat(rows).search(queries, 6)
    assert "nearest vectors are not the nearest" in difference(rows, queries, expected, (scores[:, 1:], ids[:, 1:]))
    twice = expected[0].copy(), expected[1].copy()
    twice[1][:, 1], twice[0][:, 1] = twice[1][:, 0], twice[0][:, 0]
    assert (
        difference(rows, queries, (twice[0], expected[1]), twice) == "answers name a vector twice for 20 of 20 queries"
    )


def test_what_came_of_the_search_is_judged():
    assert search.judge_search("", [], "").state == "ok"
    assert search.judge_search("", ["libcublas 12 and 13"], "").state == "warning"
    wrong = search.judge_search("ids are of no vector", [], "")
    assert (wrong.state, "disagrees" in wrong.text) == ("problem", True)
    assert search.judge_search(None, [], "it was ended by SIGSEGV").state == "problem"


def _build(**changes):
    values = {"version": "1.15", "options": "X", "packages": ("a 1",), "has_gpu": True, "num_gpus": 2, "cuda_major": 12}
    return FaissBuild(**values | changes)


@pytest.mark.parametrize(
    ("build", "cuda", "gpus", "state", "words"),
    [
        (_build(), "12.8", 2, "ok", "GPU, CUDA 12"),
        (_build(options="CUVS"), "12.8", 2, "ok", "cuVS"),
        (_build(), "13.0", 2, "warning", "torch is built for CUDA 13.0"),
        (_build(has_gpu=False, num_gpus=0, cuda_major=None), "13.0", 2, "warning", "leaves 2 GPUs alone"),
        (_build(has_gpu=False, num_gpus=0, cuda_major=None), "13.0", 0, "ok", "for CPU"),
        (_build(num_gpus=0), "12.8", 2, "problem", "sees 0 GPUs, torch 2"),
        (_build(packages=("faiss-cpu 1", "faiss-gpu 1")), "12.8", 2, "problem", "faiss-cpu 1 and faiss-gpu 1"),
    ],
)
def test_the_build_of_faiss_is_judged_beside_torchs(build, cuda, gpus, state, words):
    finding = search.judge_build(build, cuda, gpus)
    assert (finding.state, words in finding.text) == (state, True), finding
    assert bool(finding.fix) == (state != "ok")


def test_cuda_is_read_from_requirements_and_mixed_libraries_from_maps():
    assert cuda_of(["numpy>=2", "nvidia-cublas-cu12>=12.1", "x"]) == 12
    assert cuda_of(["nvidia-cublas>=13.0,<14"]) == 13
    assert cuda_of(["numpy<3,>=1.25"]) is None
    one = "7f r /x/libcublas.so.12\n7f r /x/libcublasLt.so.12\n7f r /y/libcudart.so.12\n"
    assert libraries_twice(one + one) == []
    assert libraries_twice(one + "7f r /z/libcudart-1a2b.so.13.0.1\n") == ["libcudart 12 and 13"]


@pytest.mark.parametrize(
    ("seen", "listed", "built_for", "state"),
    [
        (0, 0, "13.0", "ok"), (2, 2, "13.0", "ok"), (2, 0, "13.0", "ok"), (1, 2, "13.0", "warning"),
        (0, 2, "13.0", "problem"), (0, 2, None, "problem"),
    ],
)  # fmt: skip
def test_gpus_that_torch_does_not_see_are_named(seen, listed, built_for, state):
    assert software.judge_gpus(seen, listed, ["550.1"], built_for).state == state


def test_the_accepted_versions_are_those_of_pyproject():
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert dict(text.split(">=") for text in asked) == software.LEAST


def test_a_package_that_is_too_old_or_missing_is_a_problem_with_its_command(monkeypatch):
    monkeypatch.setattr(software, "LEAST", {"numpy": "99.1", "no_such_package": "1.0"})
    old, missing = sorted(software.check_packages(), key=lambda f: f.subject, reverse=True)
    assert old.state == missing.state == "problem"
    assert "99.1 is needed" in old.text
    assert "pip install 'no_such_package>=1.0'" in missing.fix
    assert software.numbers("2.14.1+cu130") == (2, 14, 1) < software.numbers("10.0")


def test_an_all_reduce_is_really_made_and_judged(tmp_path):
    (finding,) = [f for f in collectives.check_collectives(0) if f.subject == "gloo"]
    assert finding.state == "ok", finding
    assert "2 processes is right" in finding.text
    answer = {"sum": 3.0, "seconds": 0.1}
    assert collectives.judge("gloo", [answer, answer | {"sum": 2.0}]).state == "problem"
    failed = collectives.judge("nccl", [answer, {"error": "no answer within 40 s"}])
    assert (failed.state, failed.subject) == ("problem", "NCCL")
    assert "rank 1: no answer" in failed.text


def test_a_child_that_hangs_or_crashes_ends_within_its_bound_with_the_others(tmp_path, monkeypatch):
    (tmp_path / "bad_children.py").write_text(
        "import os, time\ndef go(kind):\n    if kind == 'hang': time.sleep(600)\n    if kind == 'crash': os.abort()\n"
        "    if kind == 'raise': raise ValueError('no luck')\n    print('{\"x\": 1}')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    started = time.monotonic()
    answers = answers_of("bad_children:go", [["raise"], ["crash"], ["fine"], ["hang"]], 5)
    assert time.monotonic() - started < 9
    errors = ["ValueError: no luck", "it was ended by SIGABRT", None, "no answer within 5 s"]
    assert [answer.get("error") for answer in answers] == errors
    assert answers[2] == {"x": 1}


def fake_slurm(folder, monkeypatch, **scripts):
    folder.mkdir()
    for name in ("sbatch", "srun", "scontrol", "squeue", "scancel", "sinfo", "sacct"):
        path = folder / name
        path.write_text(f"#!/bin/sh\n{scripts.get(name, 'exit 0')}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin:/bin")


GOOD = {
    "sbatch": "echo slurm 24.05.1",
    "scontrol": 'case $1 in ping) echo "Slurmctld(primary) at h is UP";; *) echo "SLURM_VERSION = 24.05.1";; esac',
    "sinfo": 'echo "n1 gpu* idle"',
}


def test_a_slurm_that_works_is_all_right_and_one_that_does_not_says_what(tmp_path, monkeypatch):
    fake_slurm(tmp_path / "good", monkeypatch, **GOOD)
    assert [f.state for f in cluster.check_slurm()] == ["ok", "ok", "ok"]
    fake_slurm(tmp_path / "bad", monkeypatch, **GOOD | {"sacct": "echo accounting storage is disabled >&2; exit 1"})
    assert [f.state for f in cluster.check_slurm()] == ["ok", "ok", "warning"]
    fake_slurm(tmp_path / "down", monkeypatch, **GOOD | {"scontrol": "echo Slurmctld is DOWN; exit 1"})
    (finding,) = cluster.check_slurm()
    assert (finding.state, "no controller answers" in finding.text) == ("warning", True)
    monkeypatch.setattr(cluster, "_TIMEOUT_S", 1)
    fake_slurm(tmp_path / "silent", monkeypatch, **GOOD | {"scontrol": "exec sleep 60"})
    (finding,) = cluster.check_slurm()
    assert "no answer within 1 s" in finding.text
    monkeypatch.setenv("PATH", str(tmp_path))
    (finding,) = cluster.check_slurm()
    assert finding == ok("Slurm", "not here: steps run on this machine (--cluster local)")


def test_slurms_versions_and_nodes_are_judged():
    assert cluster.judge_controller("slurm 23.11.4", "SLURM_VERSION = 23.11.9").state == "ok"
    assert cluster.judge_controller("slurm 23.11.4", "SLURM_VERSION           = 24.05.1").state == "warning"
    assert cluster.judge_nodes("n1 gpu* idle\nn2 cpu down*").state == "ok"
    assert cluster.judge_nodes("n1 gpu* down\nn2 gpu* drained\nn3 gpu* idle*").state == "problem"


def test_the_folder_is_tried_and_left_as_it_was(tmp_path):
    findings = list(disk.check_folder(tmp_path / "runs" / "new"))
    assert [f.subject for f in findings] == ["disk room", "disk speed", "disk renames", "disk locks", "clocks"]
    assert all(f.state != "problem" for f in findings), findings
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_a_problem():
    findings = list(disk.check_folder(Path("/proc/x")))
    assert [f.state for f in findings][-1] == "problem"
    assert "cannot write in /proc" in findings[-1].text


def test_locks_and_renames_that_do_not_hold_are_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(disk.fcntl, "flock", lambda *_: None)
    assert disk._locks(tmp_path).state == "warning"

    def no_locks(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(disk.fcntl, "flock", no_locks)
    assert "No locks available" in disk._locks(tmp_path).text
    monkeypatch.setattr(Path, "rename", lambda self, target: target)
    assert disk._renames(tmp_path).state == "problem"


@pytest.mark.parametrize(
    ("finding", "state"),
    [
        (disk.judge_room(Path("x"), GIB), "problem"),
        (disk.judge_room(Path("x"), 10 * GIB), "warning"),
        (disk.judge_room(Path("x"), 100 * GIB), "ok"),
        (disk.judge_speed(5e6, 0.01), "warning"),
        (disk.judge_speed(5e8, 1.0), "warning"),
        (disk.judge_speed(5e8, 0.01), "ok"),
        (disk.judge_clock(-60.0), "warning"),
        (disk.judge_clock(0.5), "ok"),
        (disk.judge_shared_memory(Path("x"), 64 << 20, 64 << 20), "warning"),
        (disk.judge_shared_memory(Path("x"), 8 * GIB, 8 * GIB), "ok"),
        (disk.judge_open_files(512), "warning"),
        (disk.judge_open_files(1024), "ok"),
        (disk.judge_open_files(resource.RLIM_INFINITY), "ok"),
    ],
)
def test_figures_are_judged(finding, state):
    assert finding.state == state, finding
    assert bool(finding.fix) == (state != "ok")


def test_the_limit_of_open_files_is_the_one_that_a_run_takes(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    finding = disk.check_open_files()
    assert (finding.state, "4,096 a process" in finding.text) == ("ok", True), finding


@pytest.mark.parametrize(
    ("compiler", "has_header", "state", "words"),
    [
        ("gcc", True, "ok", "gcc, with "),
        ("clang", True, "ok", "clang, with "),
        (None, True, "problem", "neither gcc nor clang is here, and Triton's kernels need one"),
        ("gcc", False, "problem", "Python.h is not here, and Triton's kernels need it"),
    ],
)
def test_where_gpus_are_seen_a_c_compiler_and_pythons_headers_are_looked_for(
    monkeypatch, tmp_path, compiler, has_header, state, words
):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(software.sysconfig, "get_paths", lambda scheme: {"include": str(tmp_path)})
    if compiler:
        (tmp_path / compiler).write_text("")
        (tmp_path / compiler).chmod(0o755)
    if has_header:
        (tmp_path / "Python.h").write_text("")
    assert list(software.check_compiler(0)) == []
    (finding,) = software.check_compiler(4)
    assert (finding.state, words in finding.text) == (state, True), finding
    monkeypatch.setenv("CC", "/opt/gone/cc")
    (finding,) = software.check_compiler(4)
    assert "CC names /opt/gone/cc, which is not here" in finding.text


def test_one_look_that_fails_does_not_end_the_examination(monkeypatch, tmp_path):
    def fail():
        raise RuntimeError("unforeseen")

    for name in ("check_packages", "check_torch", "check_faiss", "check_collectives"):
        monkeypatch.setattr(examine, name, lambda *_: [ok("x", "y")])
    monkeypatch.setattr(examine, "check_slurm", fail)
    findings = list(examine.examine(tmp_path))
    (failed,) = [f for f in findings if f.subject == "Slurm"]
    assert (failed.state, failed.text) == ("problem", "RuntimeError: unforeseen")
    assert findings[-1].subject == "open files"
    assert not examine.is_healthy(findings)


def test_complaints_come_with_their_fix_below():
    lines = examine.as_line(problem("disk", "full", "make room")).splitlines()
    assert [lines[0].split(), lines[1].strip()] == [["PROBLEM", "disk", "full"], "-> make room"]
    findings = [ok("a", "b"), warning("c", "d", "e")]
    assert examine.is_healthy(findings)
    assert examine.summary(findings) == "0 problems, 1 warnings, 1 fine"


def test_the_command_gives_json_and_its_code(tmp_path):
    door = [sys.executable, str(ROOT / "tools" / "doctor.py"), "--json", "--run"]
    started = time.monotonic()
    answer = subprocess.run([*door, str(tmp_path / "run")], capture_output=True, text=True, check=False)
    assert time.monotonic() - started < 60
    record = json.loads(answer.stdout)
    assert (answer.returncode, record["healthy"]) in ((0, True), (1, False))
    subjects = [finding["subject"] for finding in record["findings"]]
    assert {"Python", "torch", "FAISS", "FAISS on GPU", "gloo", "disk speed", "shared memory"} <= set(subjects)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("finding", "code"), [(warning("a", "b", "c"), 0), (problem("a", "b", "c"), 1)])
def test_the_exit_code_is_1_for_a_problem_and_not_for_a_warning(monkeypatch, capsys, finding, code):
    monkeypatch.setattr(examine, "examine", lambda folder: [finding])
    assert call("doctor", []) == code
    assert "-> c" in capsys.readouterr().out


@pytest.mark.slurm
def test_a_real_slurm_is_seen_and_so_is_one_whose_nodes_are_drained(monkeypatch):
    real = start_or_skip()
    try:
        for name, value in real.environment.items():
            monkeypatch.setenv(name, value)
        slurm, nodes, accounting = cluster.check_slurm()
        assert (slurm.state, nodes.state) == ("ok", "ok")
        assert "2 can take jobs; partitions high, low, main*" in nodes.text
        assert (accounting.state, "storage is disabled" in accounting.text) == ("warning", True)
        real.run("scontrol", "update", "nodename=127.0.0.1,localhost", "state=drain", "reason=test")
        assert [finding.state for finding in cluster.check_slurm()] == ["ok", "problem", "warning"]
    finally:
        real.stop()
