"""Where raw data sets come from when no folder holds them: Debian's package, torchvision's mirrors.

Every download goes into a hidden folder that is renamed when it is complete, so a cut one is never taken for a whole.
"""

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from andscale.errors import RunError, SourceUnavailableError

FASHION_MNIST_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
DEBIAN_PACKAGE = "dataset-fashion-mnist"
INSTALLED_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_APT_TIMEOUT_S = 600
_MIRROR_TIMEOUT_S = 3600
_SILENCE_TIMEOUT_S = 60


class _UnavailableError(Exception):
    """One way of obtaining a data set did not work; the text is the brief reason."""


def fetch_fashion_mnist(folder: Path | None, download_to: Path) -> tuple[Path, str]:
    """Find or download the four IDX files of Fashion-MNIST, gzipped or not.

    The first that works of: ``folder``, the installed Debian package, what an earlier call downloaded, the Debian
    package through apt (no root needed), torchvision's mirrors.

    Args:
        folder: where the user says the files are, directly or one level below; None: nowhere.
        download_to: where downloads go and are found again.

    Returns:
        The folder that holds the files, and in words where they came from.

    Raises:
        SourceUnavailableError: nothing worked; one line names each attempt and its reason.
    """
    attempts: list[tuple[str, Callable[[], Path]]] = [
        (f"the installed package {DEBIAN_PACKAGE}", lambda: _existing(INSTALLED_FOLDER)),
        ("an earlier download", lambda: _existing(download_to / "apt", download_to / "torchvision")),
        (f"Debian's package {DEBIAN_PACKAGE}", lambda: _download_by_apt(download_to / "apt")),
        (
            "torchvision's mirrors",
            lambda: _download_by_torchvision("fashion-mnist", download_to / "torchvision"),
        ),
    ]
    if folder is not None:
        attempts.insert(0, (f"the folder {folder}", lambda: _existing(folder)))
    failures = []
    for words, attempt in attempts:
        try:
            return attempt(), words
        except _UnavailableError as error:
            failures.append(f"{words}: {error}")
    raise SourceUnavailableError(
        f"Fashion-MNIST could not be obtained ({'; '.join(failures)}): put its four IDX files into a folder and name it"
    )


def fetch_from_torchvision(name: str, download_to: Path) -> Path:
    """Download the files of ``cifar10``, ``cifar100`` or ``svhn`` as they are on the mirrors; returns their folder.

    Raises:
        RunError: the download failed; the text says why.
    """
    target = download_to / "torchvision"
    if target.is_dir():
        return target
    try:
        return _download_by_torchvision(name, target)
    except _UnavailableError as error:
        raise RunError(
            f"{name} could not be downloaded from torchvision's mirrors ({error}): name a folder that holds it"
        ) from None


def save_from_mirrors(name: str, folder: str) -> None:
    """Download a data set's original files with torchvision, checked against its MD5 sums; runs in a child process.

    Files are saved, not opened: torchvision's own classes would unpickle CIFAR's.
    """
    import socket

    from torchvision import datasets
    from torchvision.datasets.utils import download_url

    socket.setdefaulttimeout(_SILENCE_TIMEOUT_S)
    for urls, filename, md5 in _mirrored_files(datasets, name):
        for remaining, url in zip(range(len(urls) - 1, -1, -1), urls, strict=True):
            try:
                download_url(url, folder, filename, md5)
                break
            except (OSError, RuntimeError):
                if not remaining:
                    raise


def _mirrored_files(datasets: Any, name: str) -> list[tuple[list[str], str, str]]:
    """(urls to try, file name, MD5) of each file, as torchvision's classes list them."""
    match name:
        case "fashion-mnist":
            mnist = datasets.FashionMNIST
            return [([mirror + file for mirror in mnist.mirrors], file, md5) for file, md5 in mnist.resources]
        case "cifar10" | "cifar100":
            cifar = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
            return [([cifar.url], cifar.filename, cifar.tgz_md5)]
        case "svhn":
            lists = datasets.SVHN.split_list
            return [([url], file, md5) for url, file, md5 in (lists["train"], lists["test"])]
        case _:
            raise AssertionError(name)


def find_idx_file(folder: Path, name: str) -> Path | None:
    """``name`` or ``name.gz`` in ``folder``."""
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)


def _existing(*folders: Path) -> Path:
    """The first folder that holds all four IDX files, itself or one level below, or in torchvision's layout."""
    present = [folder for folder in folders if folder.is_dir()]
    for folder in present:
        try:
            below = sorted(p for p in folder.iterdir() if p.is_dir())
        except OSError as error:
            raise _UnavailableError(f"cannot be read: {error.strerror}") from None
        for place in (folder, *below, folder / "FashionMNIST" / "raw"):
            if all(find_idx_file(place, name) for name in FASHION_MNIST_FILES):
                return place
    raise _UnavailableError("does not hold the four IDX files" if present else "none here")


def _download_by_apt(target: Path) -> Path:
    """Download and unpack the Debian package into ``target``, with apt's own state or else with a private one."""
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise _UnavailableError(f"there is no {tool} here")
    with _staging(target) as staging:
        # the sandbox user of apt could not write into our folder
        options = ["-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=30"]
        download = ["apt-get", *options, "download", DEBIAN_PACKAGE]
        try:
            _run(download, staging, _APT_TIMEOUT_S)
        except _UnavailableError:
            # package lists that are missing or old are fetched into a state of our own, which needs no root
            lists, cache = staging / "apt-lists", staging / "apt-cache"
            (lists / "partial").mkdir(parents=True)
            (cache / "archives" / "partial").mkdir(parents=True)
            private = ["-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={cache}"]
            _run(["apt-get", *options, *private, "update"], staging, _APT_TIMEOUT_S)
            _run(["apt-get", *options, *private, "download", DEBIAN_PACKAGE], staging, _APT_TIMEOUT_S)
        packages = sorted(staging.glob(f"{DEBIAN_PACKAGE}_*.deb"))
        if not packages:
            raise _UnavailableError("apt-get wrote no package")
        _run(["dpkg", "-x", str(packages[0]), str(staging / "unpacked")], staging, _APT_TIMEOUT_S)
        unpacked = staging / "unpacked" / INSTALLED_FOLDER.relative_to("/")
        if not unpacked.is_dir():
            raise _UnavailableError(f"the package does not hold {INSTALLED_FOLDER}")
        unpacked.rename(staging / "files")
        for leftover in ("unpacked", "apt-lists", "apt-cache"):
            shutil.rmtree(staging / leftover, ignore_errors=True)
        packages[0].unlink()
    return _existing(target)


def _download_by_torchvision(name: str, target: Path) -> Path:
    """Run ``save_from_mirrors`` in a process of its own: it can be timed out, and this one stays free of torch."""
    package_root = Path(__file__).resolve().parents[2]
    search_path = os.pathsep.join(p for p in (str(package_root), os.environ.get("PYTHONPATH")) if p)
    code = "import sys; from andscale.data.downloads import save_from_mirrors as s; s(*sys.argv[1:])"
    with _staging(target) as staging:
        command = [sys.executable, "-c", code, name, str(staging)]
        _run(command, staging, _MIRROR_TIMEOUT_S, PYTHONPATH=search_path)
    return target


@contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """A fresh hidden folder beside ``target`` (absolute), renamed to it when the block ends well."""
    target = target.absolute()
    staging = target.with_name(f".{target.name}.partial-{secrets.token_hex(8)}")
    try:
        staging.mkdir(parents=True)
        yield staging
        staging.rename(target)
    except OSError as error:
        raise _UnavailableError(f"cannot write {target}: {error.strerror}") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _run(command: list[str], folder: Path, timeout_s: float, **environment: str) -> None:
    """Run a command in ``folder``; the last line of its complaint becomes the reason of the failure."""
    try:
        subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "LC_ALL": "C", **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=True,
        )
    except subprocess.TimeoutExpired:
        raise _UnavailableError(f"{Path(command[0]).name} took longer than {timeout_s:g} s") from None
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {error.returncode}"]
        raise _UnavailableError(f"{Path(command[0]).name}: {lines[-1].strip()[:160]}") from None
