import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from benchmarks import bench, gpu, more
from benchmarks.bench import Settings, grow, make_jobs
from benchmarks.data import clustered_unit_vectors
from benchmarks.rebuild_parts import measure_parts


def test_a_quick_run_goes_from_the_command_to_the_tables(tmp_path, repository):
    command = [
        sys.executable,
        "-m",
        "benchmarks",
        "--quick",
        "--json",
        tmp_path / "all.json",
        "--plot",
        tmp_path / "plot",
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=repository, timeout=500)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "all.json").read_text())
    for name, job in record["jobs"].items():
        assert f"| {job['title']} " in done.stdout
        assert job["seconds"] or name in ("pynndescent", "usearch"), job["problem"]
    assert len(record["targets"]) == 5 and all(value > 0 for value in record["targets"].values())
    assert set(record["growth_s"]["ours"]) == {"1000", "2000", "4000"}
    assert (tmp_path / "plot.svg").exists() and (tmp_path / "plot.png").exists()
    (ours,) = [line for line in done.stdout.splitlines() if line.startswith("| andscale ") and "1.00 |" in line]
    assert " 1.0000 " in ours
    assert len(record["more"]) == len(more.sections(quick=True))
    assert not [text for text in record["more"].values() if not text or text.startswith("not measured")]


@pytest.mark.parametrize(
    ("code", "limit_s", "text"),
    [
        ("import sys; print('| table of', *sys.argv[1:], '|')", 60, "| table of 7 8 |"),
        ("raise ValueError('no room')", 60, "not measured: ValueError: no room"),
        ("import sys; sys.exit(4)", 60, "not measured: exit code 4"),
        ("import time; time.sleep(60)", 1, "not measured: ended after 1 s"),
    ],
)
def test_another_benchmark_prints_its_table_or_says_why_not(tmp_path, monkeypatch, code, limit_s, text):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "other.py").write_text(code)
    monkeypatch.setattr(more, "_ROOT", tmp_path)
    assert more.run_section(more.Section("Other", "other", ("7", "8")), limit_s) == text


def test_growth_stops_where_the_time_does(monkeypatch):
    jobs, clock = make_jobs(2), [0.0]
    a_call_of_rows = {"ours": 1e-3, "faiss": 2e-3, "torch": 3e-3, "original": 20e-3}
    costs = {jobs[name]: cost for name, cost in a_call_of_rows.items()}

    def measure(job, call, into, turn):
        into.seconds[turn] = costs[job] * call.num_rows**2
        clock[0] += into.seconds[turn]

    monkeypatch.setattr(bench, "measure", measure)
    monkeypatch.setattr(bench.time, "monotonic", lambda: clock[0])
    growth = grow(Settings(sizes=(10, 20, 40), growth_s=40), jobs, {job: job for job in jobs.values()})
    assert growth["ours"] == {10: pytest.approx(0.1), 20: pytest.approx(0.4), 40: pytest.approx(1.6)}
    assert growth["original"] == {10: pytest.approx(2.0), 20: pytest.approx(8.0), 40: None}
    assert clock[0] <= 40


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_gpu_its_benchmark_refuses_in_one_line(capsys):
    assert gpu.main([]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: bench-gpu needs a CUDA device, and torch sees none here\n"


def test_the_peers_of_the_gpu_are_right_on_another_device():
    records = gpu.compare(clustered_unit_vectors(1500, 32), torch.device("cpu"), repeats=1)
    assert len(records) == 5
    for record in records[:3]:
        assert record["recall"] == 1 and len(record["seconds"]) == 1
    assert all(record["entropy_error"] < 1e-4 for record in records[:2])
    text = gpu.comparison_table(records)
    assert all(record["title"] in text for record in records)


def test_a_rebuild_job_is_timed_in_parts(tmp_path):
    parts = measure_parts(clustered_unit_vectors(1500, 32), tmp_path, 0.1)
    assert parts["all"] == pytest.approx(np.sum([seconds for name, seconds in parts.items() if name != "all"]))
    assert [name.split()[0] for name in parts] == [
        "read",
        "discover,",
        "check",
        "select",
        "write",
        "build",
        "write",
        "all",
    ]
    assert min(parts.values()) > 0
