import pytest
from service_runs import client, two_rounds


@pytest.fixture(scope="session")
def served_run(tmp_path_factory, digits):
    """A run of two rounds; read only."""
    return two_rounds(tmp_path_factory.mktemp("served") / "tiny", digits)


@pytest.fixture(scope="module")
def api(served_run):
    """The service over the newest round, in this process."""
    with client(served_run.root) as calling:
        yield calling
