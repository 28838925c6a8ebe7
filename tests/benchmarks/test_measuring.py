import time

import numpy as np
import pytest

from benchmarks.data import clustered_unit_vectors
from benchmarks.measuring import Job, Measurement, PeerError, Worker, measure, ratio, workers_of
from benchmarks.worker import RANKED, Call


@pytest.fixture
def features(tmp_path):
    path = tmp_path / "features.npy"
    np.save(path, clustered_unit_vectors(2500, 16))
    return path


@pytest.fixture
def usearch_that(tmp_path, monkeypatch):
    """Puts another package in the place of usearch, for workers."""

    def make(code):
        (tmp_path / "usearch").mkdir()
        (tmp_path / "usearch" / "__init__.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        return Job("usearch", "usearch")

    return make


def test_a_worker_answers_with_time_memory_and_the_rows_asked_for(features):
    job = Job("bare", "torch")
    with workers_of([job], features, 60) as workers:
        found = Measurement()
        measure(workers[job], Call(2500, 2, 0.1, (7, 1)), found, 0)
        measure(workers[job], Call(2000, 2, 0.1), found, 1)
    assert not found.problem
    assert sorted(found.seconds) == [0, 1] and min(found.seconds.values()) > 0
    assert np.array(found.ids).shape == (2, 2)
    assert found.entropies is None
    # a block of 2,500 x 2,500 similarities is 24 MiB
    assert found.peak_bytes is None or 15 * 2**20 < found.peak_bytes < 200 * 2**20


def test_ranks_share_the_samples(features):
    job = Job("ranks", RANKED, num_ranks=2)
    with workers_of([job], features, 60) as workers:
        found = Measurement()
        measure(workers[job], Call(2500, 1, 0.1, (0, 1)), found, 0)
    assert not found.problem
    assert len(found.seconds) == 1 and len(found.entropies) == 2


@pytest.mark.parametrize(
    ("code", "limit_s", "problem"),
    [
        ("raise ImportError('not installed here')", 60, "ImportError: not installed here"),
        ("import os; os.write(2, b'no memory'); os._exit(9)", 60, "its process ended: no memory"),
        ("import time; time.sleep(60)", 1, "ended after 1 s without an answer"),
    ],
)
def test_a_peer_that_fails_is_a_problem_not_a_crash(features, usearch_that, code, limit_s, problem):
    job = usearch_that(code)
    with workers_of([job], features, limit_s) as workers:
        found = Measurement()
        measure(workers[job], Call(2500, 1, 0.1), found, 0)
    assert found.problem == problem
    assert found.median is None


def test_no_process_outlives_its_worker(features, usearch_that):
    worker = Worker(usearch_that("import time; time.sleep(15)"), features, 60)
    started = time.monotonic()
    worker.close()
    assert time.monotonic() - started < 10
    assert all(process.poll() is not None for process in worker.processes)


def test_a_peer_that_dies_between_two_calls_is_a_problem(features):
    job = Job("bare", "torch")
    with workers_of([job], features, 60) as workers:
        for process in workers[job].processes:
            process.kill()
            process.wait()
        with pytest.raises(PeerError, match="its process ended"):
            workers[job].run(Call(2500, 1, 0.1))


def test_ratios_are_paired_round_by_round():
    # everything was ten times as slow in round 1
    assert ratio(Measurement(seconds={0: 2.0, 1: 20.0}), Measurement(seconds={1: 10.0, 2: 5.0})) == 2
    assert ratio(Measurement(), Measurement(seconds={0: 1.0})) is None
