"""The way from a file in jobs/ or tools/ to its command, from any Python: ``.venv`` is found when it is needed.

Standard library only, and syntax that old Pythons read, so that a missing environment is answered in one line.
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

_PACKAGES = (
    "blake3",
    "faiss",
    "numba",
    "numpy",
    "psutil",
    "pyarrow",
    "pydantic",
    "safetensors",
    "submitit",
    "torch",
    "torchvision",
    "typer",
)


def open_door(command: str) -> None:
    """Run ``command`` with this Python if the packages are here, else with the repository's ``.venv``."""
    if sys.version_info < (3, 11) or any(find_spec(package) is None for package in _PACKAGES):
        _go_to_environment()
    # jobs are started as python -m submitit...: they must find the package from any folder, installed or not
    paths = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    from andscale.cli import call

    sys.exit(call(command))


def _go_to_environment() -> None:
    python = Path(__file__).resolve().parents[1] / ".venv" / "bin" / "python"
    if not python.exists() or Path(sys.prefix).resolve() == python.parents[1].resolve():
        sys.exit(f"error: andscale's packages are not installed for {sys.executable}: run 'make env' first")
    os.execv(python, [str(python), *sys.argv])
