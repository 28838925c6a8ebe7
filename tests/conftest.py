"""Fixtures that several test files share."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

settings.register_profile("andscale", deadline=None)  # shared machines stall
settings.load_profile("andscale")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def rng():
    return np.random.default_rng(20261122)


@pytest.fixture(scope="session")
def repository():
    return ROOT


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """scikit-learn's digits as a prepared data set; read only."""
    from andscale.data.prepare import PrepareOptions, prepare

    out = tmp_path_factory.mktemp("digits") / "prepared"
    return prepare("digits", None, out, PrepareOptions(samples_per_shard=500, num_workers=2))


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, digits):
    """A function of the epochs a round to an UndisturbedRun, which all files and all pytest processes share."""
    from whole_runs import undisturbed_run

    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    return lambda num_epochs: undisturbed_run(shared, digits, num_epochs)


@pytest.fixture
def one_thread(monkeypatch):
    """Jobs in this process take one core, as if there were no more."""
    import torch

    threads = torch.get_num_threads()
    monkeypatch.setattr("andscale.distributed.os.sched_getaffinity", lambda _: {0}, raising=False)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _quiet_threads(monkeypatch):
    """Two cores, several processes: one thread each is faster and the same on every machine."""
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
