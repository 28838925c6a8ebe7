"""Python, the packages, torch, its GPUs."""

import importlib
import os
import platform
import re
import shutil
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from andscale.doctor.finding import Finding, ask, ok, one_line, problem, warning
from andscale.spelling import make_env

LEAST_PYTHON = (3, 11)
LEAST = {
    "blake3": "1.0",
    "numba": "0.61",
    "numpy": "2.0",
    "pillow": "11.0",
    "psutil": "6.0",
    "pyarrow": "18.0",
    "pydantic": "2.9",
    "safetensors": "0.5",
    "simplejpeg": "1.8",
    "submitit": "1.5.3",
    "torch": "2.11",
    "torchvision": "0.26",
    "typer": "0.29",
    "webdataset": "1.0",
}
"""Package -> least version, as pyproject.toml has them."""
_MODULES = {"pillow": "PIL"}
_SLOW = ("torchvision",)
"""Takes longer to import than all others together, and only downloads need it: looked for, not imported."""
_SHOWN = ("submitit", "webdataset", "pyarrow", "numpy")
_SMI_TIMEOUT_S = 10


def check_python() -> Finding:
    """The interpreter's version."""
    text = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info < LEAST_PYTHON:
        return problem("Python", text, f"use Python 3.11 or later{make_env(': ')}")
    return ok("Python", text)


def check_packages() -> Iterator[Finding]:
    """Each package imports, in a version that is accepted."""
    found, complaints = {}, []
    for package, least in LEAST.items():
        try:
            if package not in _SLOW:
                importlib.import_module(_MODULES.get(package, package))
            found[package] = version(package)
        except (ImportError, PackageNotFoundError, OSError) as error:
            complaints.append(problem(package, f"cannot be imported: {one_line(error)}", _install(package)))
            continue
        if numbers(found[package]) < numbers(least):
            complaints.append(problem(package, f"{found[package]} is too old: {least} is needed", _install(package)))
    yield from complaints
    if not complaints:
        yield ok("packages", f"{len(LEAST)} are there: " + ", ".join(f"{name} {found[name]}" for name in _SHOWN))


def _install(package: str) -> str:
    return f"pip install '{package}>={LEAST[package]}'{make_env(', or ')}"


def numbers(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: ``2.14.1+cu130`` is (2, 14, 1)."""
    match = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def check_torch() -> Iterator[Finding]:
    """torch, the CUDA that it was built for, the driver, the GPUs that it sees."""
    import torch

    built_for = torch.version.cuda
    yield ok("torch", f"{torch.__version__}, built for {f'CUDA {built_for}' if built_for else 'the CPU'}")
    code, listed = ask(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"], _SMI_TIMEOUT_S)
    driver = sorted({line.rpartition(",")[2].strip() for line in listed.splitlines()}) if code == 0 else []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch has to say of a driver is said below
        seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    yield judge_gpus(seen, len(listed.splitlines()) if code == 0 else 0, driver, built_for)
    if seen:
        names = ", ".join(sorted({torch.cuda.get_device_name(number) for number in range(seen)}))
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        yield ok("GPU memory", f"{names}: {memory:.0f} GiB each")


def judge_gpus(seen: int, listed: int, driver: list[str], built_for: str | None) -> Finding:
    """What torch sees against what the driver lists."""
    if seen == listed and seen:
        return ok("GPUs", f"{seen}, driver {', '.join(driver)}")
    if not listed and not seen:
        return ok("GPUs", "none here: training and search run on the CPU")
    if seen and not listed:
        return ok("GPUs", f"{seen} (nvidia-smi does not answer)")
    if not built_for:
        return problem(
            "GPUs", f"{listed} here, but torch is built for the CPU", f"install torch for CUDA{make_env(': ')}"
        )
    fix = f"look at CUDA_VISIBLE_DEVICES, and whether driver {', '.join(driver)} runs CUDA {built_for}"
    if seen:
        return warning("GPUs", f"torch sees {seen} of {listed}", fix)
    return problem("GPUs", f"{listed} here, and torch sees none of them", fix)


def check_compiler(num_gpus: int) -> Iterator[Finding]:
    """What Triton needs besides itself on a machine with GPUs: it compiles a small C file at its first use there."""
    if not num_gpus:
        return
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    # as Triton asks: Debian's own scheme, posix_local, has the headers elsewhere
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    header = Path(sysconfig.get_paths(scheme=scheme)["include"]) / "Python.h"
    if compiler is None or shutil.which(compiler) is None:
        found = f"CC names {compiler}, which is not here" if compiler else "neither gcc nor clang is here"
        fix = "install gcc on every node with GPUs, load its module in [slurm] setup, or name a compiler with CC"
        yield problem("C compiler", f"{found}, and Triton's kernels need one", fix)
    elif not header.is_file():
        fix = (
            f"install this Python's headers (python{sys.version_info[0]}-dev or -devel), or use a Python that has them"
        )
        yield problem("C compiler", f"{header} is not here, and Triton's kernels need it", fix)
    else:
        yield ok("C compiler", f"{compiler}, with {header}")
