"""The package as others install it: an sdist, a wheel made of it, and that wheel at work without the repository."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import andscale

ROOT = Path(__file__).resolve().parents[1]
VERSION = andscale.__version__
BUILD = "import sys; from setuptools import build_meta as b; getattr(b, 'build_' + sys.argv[1])(sys.argv[2])"


def run(*command, cwd, check=True, **more):
    """A command to its end, in an environment that knows nothing of the repository."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    answer = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, cwd=cwd, check=False, env=environment | more
    )
    assert answer.returncode == 0 or not check, f"{command}\n{answer.stdout}\n{answer.stderr}"
    return answer


def repository_files():
    """What git keeps or would keep, as paths below the root; ``andscale/configs`` is a link among them."""
    listed = run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).stdout.split("\n")
    return [name for name in listed if name and os.path.lexists(ROOT / name)]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(sdist, wheel): the sdist of a copy without build leftovers, the wheel of the unpacked sdist, offline."""
    folder = tmp_path_factory.mktemp("built")
    for name in repository_files():
        (folder / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / "copy" / name, follow_symlinks=False)
    run(sys.executable, "-c", BUILD, "sdist", folder, cwd=folder / "copy")
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    run(sys.executable, "-c", BUILD, "wheel", folder, cwd=folder / sdist.name.removesuffix(".tar.gz"))
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The ``bin`` of a fresh environment that has the wheel, and sees this environment's other packages.

    They come by a .pth of ours: Python does not look at the .pth files in there, so not at the repository's either.
    """
    folder = tmp_path_factory.mktemp("elsewhere") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    (packages,) = folder.glob("lib/python3*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = (sys.executable, "-m", "pip", "--python", folder / "bin" / "python")
    run(*pip, "install", "--no-deps", "--no-index", "-q", built[1], cwd=folder.parent)
    where = run(folder / "bin" / "python", "-c", "import andscale; print(andscale.__file__)", cwd=folder).stdout.strip()
    assert Path(where) == packages / "andscale" / "__init__.py"
    return folder / "bin"


def test_the_wheel_holds_the_package_with_every_config_and_nothing_else(built):
    wanted = {name for name in repository_files() if name.startswith("andscale/") and name != "andscale/configs"}
    wanted |= {f"andscale/{name}" for name in repository_files() if name.startswith("configs/")}
    with zipfile.ZipFile(built[1]) as wheel:
        names = set(wheel.namelist())
        assert {name for name in names if ".dist-info/" not in name} == wanted
        for name in wanted:
            assert wheel.read(name) == (ROOT / name).read_bytes(), name
    assert {name.rpartition("/")[2] for name in names - wanted} >= {"LICENSE", "METADATA", "entry_points.txt"}
    # the sets above follow the folders; these are what must not be missing from them
    for needed in ("py.typed", "configs/fashion_mnist_demo.toml", "service/page/index.html", "audit/report/report.css"):
        assert f"andscale/{needed}" in names


def test_the_sdist_is_the_repository(built):
    with tarfile.open(built[0]) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    missing = {name for name in repository_files() if name not in names and not name.startswith(".")}
    assert missing == {"andscale/configs"}, "the link is a folder there"
    generated = {name for name in names if ".egg-info/" in name} | {"PKG-INFO", "setup.cfg"}
    assert names - generated - set(repository_files()) == {
        f"andscale/{name}" for name in repository_files() if name.startswith("configs/")
    }


def test_help_and_version_come_from_the_installed_package(installed, tmp_path):
    assert run(installed / "andscale", "--version", cwd=tmp_path).stdout == f"andscale {VERSION}\n"
    listed = run(installed / "andscale", "--help", cwd=tmp_path).stdout
    for command in ("launch", "demo", "doctor"):
        assert f"\n  {command} " in listed
        text = run(installed / "andscale", command, "--help", cwd=tmp_path).stdout
        assert f"Example: andscale {command}" in " ".join(text.split())
        assert "jobs/" not in text and "tools/" not in text
    assert list(tmp_path.iterdir()) == []


def test_a_config_is_found_by_name_and_an_unknown_one_gets_the_list(installed, tmp_path):
    answer = run(installed / "andscale", "launch", "--config", "fashion_mnist", cwd=tmp_path, check=False)
    assert answer.returncode == 2
    (line,) = answer.stderr.splitlines()
    for path in (ROOT / "configs").glob("*.toml"):
        assert path.stem in line
    answer = run(installed / "andscale", "launch", "--config", "fashion_mnist_demo", cwd=tmp_path, check=False)
    assert answer.stderr.splitlines()[-1] == (
        "error: data/fashion-mnist is not a prepared data set: make it with andscale prepare"
    )


def test_two_rounds_of_the_digits_demo_without_the_repository(installed, tmp_path):
    program = installed / "andscale"
    prepared = run(program, "prepare", "digits", "data/digits", cwd=tmp_path)
    assert "prepared: data/digits (1,437 train, 360 val)" in prepared.stdout
    settings = ("optim.num_epochs=1", "data.max_train_samples=200", "data.max_val_samples=50", "index.check_rows=20")
    run(
        *(program, "launch", "--rounds", "0-1", "--config", "configs/digits_demo.toml", "--cluster", "local"),
        *(part for setting in (*settings, "resources.tasks_per_node=1") for part in ("--set", setting)),
        cwd=tmp_path,
        OMP_NUM_THREADS="1",
    )
    record = json.loads((tmp_path / "runs/digits_demo/run.json").read_text())
    assert record["commit"] is None, "no job ran the repository's code"
    status = json.loads(run(program, "status", "--json", cwd=tmp_path).stdout)
    assert {step["state"] for step in status["steps"] if step["round"] <= 1} == {"done"}
    figures = json.loads(run(program, "inspect", "--json", cwd=tmp_path).stdout)
    assert figures["num_samples"] == 200
