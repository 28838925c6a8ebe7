"""Fashion-MNIST is obtained by the first way that works; no test here uses the network."""

import os
import stat
import subprocess
import sys

import numpy as np
import pytest

import synthetic_sources as synthetic
from andscale.data import downloads
from andscale.data.sources import fetch_fashion_mnist, open_source
from andscale.errors import RunError

FAKE_APT = """#!/bin/sh
echo "apt-get $*" >> {log}
case "$*" in
  *update*) {update} ;;
  *Dir::State::Lists=*download*) {private} ;;
  *download*) {plain} ;;
esac
"""
FAKE_DPKG = """#!/bin/sh
# dpkg -x PACKAGE FOLDER
mkdir -p "$3/usr/share/datasets" && cp -r {content} "$3/usr/share/datasets/fashion-mnist"
"""
PUT_PACKAGE = "touch dataset-fashion-mnist_1_all.deb"
FAIL = 'echo "noise" >&2; echo "E: Unable to locate package" >&2; exit 100'


@pytest.fixture
def nothing_installed(tmp_path, monkeypatch):
    """No installed package, no tools on PATH, no mirror."""
    monkeypatch.setattr(downloads, "INSTALLED_FOLDER", tmp_path / "usr" / "share" / "datasets" / "fashion-mnist")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()

    def no_mirror(name, target):
        raise downloads._UnavailableError("no network")

    monkeypatch.setattr(downloads, "_download_by_torchvision", no_mirror)


def install_tools(tmp_path, monkeypatch, **script):
    """Fake apt-get and dpkg; returns the log of calls."""
    monkeypatch.setattr(downloads, "INSTALLED_FOLDER", downloads.Path("/usr/share/datasets/fashion-mnist"))
    if downloads.INSTALLED_FOLDER.is_dir():
        pytest.skip("the real package is installed here")
    content, log = tmp_path / "package", tmp_path / "log"
    synthetic.fashion_mnist(content, compressed=True)
    programs = {
        "apt-get": FAKE_APT.format(log=log, **{"update": "true", "private": FAIL, "plain": FAIL} | script),
        "dpkg": FAKE_DPKG.format(content=content),
    }
    for name, text in programs.items():
        path = tmp_path / "bin" / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin")
    return log


def test_the_given_folder_comes_first(tmp_path, nothing_installed):
    synthetic.fashion_mnist(tmp_path / "mine")
    place, words = fetch_fashion_mnist(tmp_path / "mine", tmp_path / "downloads")
    assert place == tmp_path / "mine"
    assert str(tmp_path / "mine") in words
    assert not (tmp_path / "downloads").exists()


def test_the_installed_package_comes_before_downloads(tmp_path, nothing_installed):
    synthetic.fashion_mnist(downloads.INSTALLED_FOLDER)
    (tmp_path / "empty").mkdir()
    place, words = fetch_fashion_mnist(tmp_path / "empty", tmp_path / "downloads")
    assert place == downloads.INSTALLED_FOLDER
    assert "installed package" in words


def test_apt_downloads_without_root_and_only_once(tmp_path, monkeypatch, nothing_installed):
    log = install_tools(tmp_path, monkeypatch, plain=PUT_PACKAGE)
    place, words = fetch_fashion_mnist(None, tmp_path / "downloads")
    assert "Debian's package" in words
    assert (place / "train-images-idx3-ubyte.gz").is_file()
    again, words = fetch_fashion_mnist(None, tmp_path / "downloads")
    assert (again, words) == (place, "an earlier download")
    assert len(log.read_text().splitlines()) == 1
    assert [p.name for p in (tmp_path / "downloads").iterdir()] == ["apt"]


def test_apt_without_package_lists_fetches_them_into_a_state_of_its_own(tmp_path, monkeypatch, nothing_installed):
    log = install_tools(tmp_path, monkeypatch, private=PUT_PACKAGE)
    place, _ = fetch_fashion_mnist(None, tmp_path / "downloads")
    assert (place / "t10k-labels-idx1-ubyte.gz").is_file()
    calls = log.read_text().splitlines()
    assert [call.split()[-1] for call in calls] == ["dataset-fashion-mnist", "update", "dataset-fashion-mnist"]
    for call in calls[1:]:
        assert f"Dir::State::Lists={tmp_path}" in call
        assert f"Dir::Cache={tmp_path}" in call
    assert sorted(p.name for p in place.parent.iterdir()) == ["files"]


def test_the_mirrors_come_last(tmp_path, monkeypatch, nothing_installed):
    install_tools(tmp_path, monkeypatch)
    asked = []

    def mirror(name, target):
        asked.append(name)
        synthetic.fashion_mnist(target, compressed=True)
        return target

    monkeypatch.setattr(downloads, "_download_by_torchvision", mirror)
    place, words = fetch_fashion_mnist(None, tmp_path / "downloads")
    assert (asked, words) == (["fashion-mnist"], "torchvision's mirrors")
    assert fetch_fashion_mnist(None, tmp_path / "downloads") == (place, "an earlier download")


def test_when_all_fails_each_attempt_is_named_with_its_reason(tmp_path, monkeypatch, nothing_installed):
    install_tools(tmp_path, monkeypatch)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError) as error:
        fetch_fashion_mnist(tmp_path / "empty", tmp_path / "downloads")
    text = str(error.value)
    assert "\n" not in text
    for part in ("does not hold the four", "installed package", "E: Unable to locate package", "no network"):
        assert part in text
    assert list((tmp_path / "downloads").iterdir()) == []


def test_a_machine_without_apt_says_so(tmp_path, nothing_installed):
    with pytest.raises(RunError, match="there is no apt-get here"):
        fetch_fashion_mnist(None, tmp_path / "downloads")


def test_a_tool_that_hangs_is_stopped(tmp_path, monkeypatch, nothing_installed):
    install_tools(tmp_path, monkeypatch, plain="exec sleep 60", update="exec sleep 60")
    monkeypatch.setattr(downloads, "_APT_TIMEOUT_S", 0.2)
    with pytest.raises(RunError, match=r"took longer than 0\.2 s"):
        fetch_fashion_mnist(None, tmp_path / "downloads")


def test_downloads_go_where_the_environment_says(tmp_path, monkeypatch, nothing_installed):
    install_tools(tmp_path, monkeypatch, plain=PUT_PACKAGE)
    monkeypatch.setenv("ANDSCALE_DOWNLOADS", str(tmp_path / "elsewhere"))
    with pytest.raises(RunError, match="12 and 5 images"):  # the fake package is a tiny one
        open_source("fashion-mnist", None)
    assert (tmp_path / "elsewhere" / "fashion-mnist" / "apt" / "files").is_dir()
    monkeypatch.delenv("ANDSCALE_DOWNLOADS")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="data/raw/fashion-mnist"):
        open_source("fashion-mnist", None)


def test_mirrors_are_asked_in_a_process_that_is_given_name_and_folder(tmp_path, monkeypatch):
    seen = []

    def run(command, **options):
        seen.append(command)
        np.save(options["cwd"] / "file.npy", 0)

    monkeypatch.setattr(subprocess, "run", run)
    place = downloads.fetch_from_torchvision("svhn", tmp_path)
    assert (place / "file.npy").is_file()
    assert seen[0][0] == sys.executable
    assert seen[0][3] == "svhn"
    assert "torch" not in seen[0][2].replace("andscale.data.downloads", "")


def test_a_failed_mirror_leaves_nothing_and_says_why(tmp_path, monkeypatch):
    def run(command, **options):
        raise subprocess.CalledProcessError(1, command, stderr=b"Traceback\nURLError: no route\n")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(RunError, match=r"cifar10 could not be downloaded.*URLError: no route"):
        downloads.fetch_from_torchvision("cifar10", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_torchvision_still_lists_the_files_that_are_asked_for():
    from torchvision import datasets

    for name, count in (("fashion-mnist", 4), ("cifar10", 1), ("cifar100", 1), ("svhn", 2)):
        files = downloads._mirrored_files(datasets, name)
        assert len(files) == count
        for urls, file, md5 in files:
            assert all(url.startswith("http") and url.endswith(file) for url in urls)
            assert len(md5) == 32
