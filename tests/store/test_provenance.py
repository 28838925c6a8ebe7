"""Which commit a manifest names: the checkout's, pip's, or none; never another project's."""

import json
import subprocess
from importlib.metadata import PathDistribution

import pytest

from andscale.store import provenance

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Where the package seems to lie: below somebody's repository, as an environment often does."""
    git = ["git", "-C", tmp_path, "-c", "user.name=x", "-c", "user.email=x"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "theirs"]):
        subprocess.run([*git, *words], check=True)
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.setattr(provenance, "_ROOT", folder)
    return folder


def commit():
    return provenance.source_commit.__wrapped__()


def install(place, monkeypatch, origin):
    """An installation of the package in ``place``, as pip records it."""
    folder = place / "andscale-1.dist-info"
    folder.mkdir(parents=True)
    (folder / "direct_url.json").write_text(json.dumps(origin))
    monkeypatch.setattr(provenance, "distribution", lambda name: PathDistribution(folder))


def test_a_repository_around_the_environment_is_not_ours(place):
    assert commit() is None


def test_a_checkout_says_its_commit_and_whether_it_was_changed(place, monkeypatch):
    root = place.parent
    monkeypatch.setattr(provenance, "_ROOT", root)
    head = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    assert commit() == head.strip()
    (root / "file").write_text("new")
    subprocess.run(["git", "-C", root, "add", "file"], check=True)
    assert commit() == f"{head.strip()}+changes"


def test_an_installation_from_git_knows_its_commit(place, monkeypatch):
    install(place, monkeypatch, {"url": "https://example.org/x.git", "vcs_info": {"vcs": "git", "commit_id": COMMIT}})
    assert commit() == COMMIT


@pytest.mark.parametrize("origin", [{"archive_info": {}}, {"dir_info": {"editable": True}}, [], {"vcs_info": 3}])
def test_one_from_a_wheel_knows_none(place, monkeypatch, origin):
    install(place, monkeypatch, origin)
    assert commit() is None


def test_the_record_of_another_installation_is_not_taken(place, monkeypatch):
    install(place / "other", monkeypatch, {"vcs_info": {"commit_id": COMMIT}})
    assert commit() is None
