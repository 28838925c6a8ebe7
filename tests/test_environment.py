"""tools/make_environment.sh: which FAISS and torch it installs, seen by a uv that installs nothing."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from andscale.errors import UsageError
from andscale.indexing.faiss_index import import_faiss
from andscale.store import run_record

ROOT = Path(__file__).resolve().parents[1]
UV = """\
#!/bin/sh
echo "$@ [$UV_TORCH_BACKEND]" >>"$UV_LOG"
[ "$1" = venv ] && mkdir -p .venv/bin && touch .venv/bin/python && chmod +x .venv/bin/python
[ ! -e "$UV_LOG.fails" ] || [ "$1" = venv ]
"""


@pytest.fixture
def make_env(tmp_path):
    """A function of variables: runs the script in a checkout of its own; returns what uv was to install, and the
    script's answer.
    """
    checkout, log = tmp_path / "checkout", tmp_path / "log"
    (checkout / "tools").mkdir(parents=True)
    for name in ("tools/make_environment.sh", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, checkout / name)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "uv").write_text(UV)
    (tmp_path / "bin" / "uv").chmod(0o755)
    ours = {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}", "UV_LOG": str(log), "PYTHON": sys.executable}
    clean = {name: value for name, value in os.environ.items() if name not in ("FAISS", "UV_TORCH_BACKEND")}

    def run(*, fails=False, **variables):
        log.write_text("")
        (tmp_path / "log.fails").unlink(missing_ok=True)
        if fails:
            (tmp_path / "log.fails").touch()
        script = ["sh", str(checkout / "tools" / "make_environment.sh")]
        answer = subprocess.run(script, env=clean | ours | variables, capture_output=True, text=True, check=False)
        return [line for line in log.read_text().splitlines() if line.startswith("pip install")], answer

    return run


def test_faiss_for_cuda_12_comes_with_a_torch_for_cuda_12_and_both_are_remembered(make_env):
    (line,), answer = make_env(FAISS="gpu")
    assert answer.returncode == 0, answer.stderr
    assert " --torch-backend cu126 -e .[gpu,sources," in line
    assert make_env()[0] == [], "it is ready"
    (line,), _ = make_env(UV_TORCH_BACKEND="cu129")
    assert " --torch-backend cu129 -e .[gpu," in line
    assert make_env(FAISS="gpu")[0] == [], "it is ready, with the torch that was chosen"


def test_the_package_indexs_own_torch_can_be_asked_for(make_env):
    (line,), _ = make_env(FAISS="gpu", UV_TORCH_BACKEND="pypi")
    assert line.endswith("] []") and "--torch-backend" not in line
    assert make_env()[0] == []


def test_other_environments_take_the_torch_that_they_took(make_env):
    (line,), _ = make_env(FAISS="cuvs")
    assert "-e .[cuvs," in line and "--torch-backend" not in line
    locked, own = make_env(FAISS="cpu", UV_TORCH_BACKEND="cpu")[0]
    assert "-r requirements.lock" in locked and "--torch-backend" not in locked
    assert own.endswith("--no-deps -e . [cpu]")


def test_pip_does_not_stand_in_with_a_torch_for_another_cuda(make_env):
    _, answer = make_env(FAISS="gpu", fails=True)
    assert answer.returncode == 1
    (line,) = answer.stderr.splitlines()
    assert line.startswith("error: no torch for cu126 could be installed with uv: name another with UV_TORCH_BACKEND=")
    assert len(make_env(FAISS="gpu")[0]) == 1, "it was not ready"


def test_each_extra_with_a_faiss_is_named_where_there_is_none_and_its_version_is_recorded(monkeypatch):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    packages = {name: needed[0].partition(">")[0] for name, needed in extras.items() if needed[0].startswith("faiss")}
    assert len(packages) == 3
    assert set(packages.values()) <= set(run_record._PACKAGES)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UsageError) as error:
        import_faiss()
    assert [name for name in packages if f"andscale[{name}]" not in str(error.value)] == []
