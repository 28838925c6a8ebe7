"""Native readers that a crafted file could crash read it in a child process first, within bounds of memory and time.

FAISS and scipy parse in C++ and C, where a lie in a file may be a segmentation fault or an allocation of terabytes:
that must be the end of a child, and one line, and not the end of a job.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

from andscale.errors import RunError

_ROOM_BYTES = 6 << 30
"""For libraries, the stacks of their threads, and what a file may need beyond four times its size."""
_LEAST_TIMEOUT_S = 120.0
_BYTES_PER_S = 20e6
# what it is given are arguments, never text of the program
_CHILD = """
import resource, sys
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
sys.path.insert(0, sys.argv[2])
from importlib import import_module
getattr(import_module(sys.argv[3]), sys.argv[4])(*sys.argv[5:])
"""


def rehearse(reader: str, path: Path, *arguments: str, where: str | None = None, room_bytes: int = _ROOM_BYTES) -> None:
    """Call ``reader(str(path), *arguments)`` in a child process, whose result is dropped.

    Args:
        reader: ``module:function`` of this package.
        path: the file that it reads.
        arguments: further ones.
        where: what errors call the file; its path by default.
        room_bytes: addresses that the child may take, libraries included, beside four times the file.

    Raises:
        RunError: the reader raised, crashed, took too long or too much memory.
    """
    module, _, function = reader.partition(":")
    size = path.stat().st_size
    package = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-c", _CHILD, str(room_bytes + 4 * size), package, module, function]
    environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    timeout_s = _LEAST_TIMEOUT_S + size / _BYTES_PER_S
    try:
        child = subprocess.run(
            [*command, str(path), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        raise RunError(f"{where or path} is refused: reading it takes more than {timeout_s:.0f} s") from None
    if child.returncode:
        raise RunError(f"{where or path} is refused: {_reason(child)}")


def _reason(child: "subprocess.CompletedProcess[bytes]") -> str:
    if child.returncode < 0:
        return f"its reader crashes on it ({signal.Signals(-child.returncode).name}): it is damaged, or made to harm"
    lines = child.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {child.returncode}"]
    # an exception's last line is its type and its text
    return lines[-1].partition(": ")[2] or lines[-1]
