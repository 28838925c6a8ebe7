"""Time of writing and of reading verified features beside numpy's, and the memory that they take.

    python benchmarks/parquet.py [NUM_SAMPLES [DIM [FOLDER]]]

The contenders take turns, and each timed run follows an unmeasured one of the same. When a write begins, its files are
removed and the disk is idle. Even so writes of either kind may come in two speeds, numpy's too, as the kernel takes
more or less time to fill the page cache: read the fastest and the slowest run beside the median.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from andscale.store import artifacts
from andscale.store.features import read_features, write_features

REPETITIONS = 9
_SAVE, _LOAD = "numpy.save + fsync", "numpy.load"


@dataclass(frozen=True)
class Row:
    """One contender.

    Attributes:
        name: what was done.
        seconds: of each run.
        ratio: of its median to numpy's.
        peak_of_data: the most memory that its process had over what it had before (a writer: before the features were
            made), in sizes of the float32 features; None where it was not measured.
    """

    name: str
    seconds: tuple[float, ...]
    ratio: float
    peak_of_data: float | None


def measure(num_samples: int, dim: int, folder: Path | None = None) -> list[Row]:
    """Write and read (num_samples, dim) float32 features with numpy and with the store.

    Args:
        num_samples: N.
        dim: D.
        folder: where a temporary folder is made; None: where the system makes them.

    Returns:
        numpy's and our writes, then numpy's and our reads.
    """
    with tempfile.TemporaryDirectory(dir=folder) as name:
        root = Path(name)
        features = unit_features(num_samples, dim)
        writes = {
            _SAVE: partial(_save, root / "numpy", features),
            "write float32": partial(_publish, root / "float32", features, "float32"),
            "write float16": partial(_publish, root / "float16", features, "float16"),
        }
        seconds = _take_turns(writes, prepare=partial(_remove, root))
        _remove(root)
        for write in writes.values():
            write()
        del features, writes, write
        reads = {
            _LOAD: partial(np.load, root / "numpy" / "features.npy"),
            "read float32": partial(read_features, root / "float32"),
            "read float16": partial(read_features, root / "float16"),
        }
        seconds |= _take_turns(reads, prepare=lambda: None)
        peaks = {name: _peak_of_data(root, name, num_samples, dim) for name in seconds if "numpy" not in name}
    rows = []
    for name, runs in seconds.items():
        yardstick = seconds[_SAVE if name in (_SAVE, "write float32", "write float16") else _LOAD]
        rows.append(Row(name, runs, statistics.median(runs) / statistics.median(yardstick), peaks.get(name)))
    return rows


def unit_features(num_samples: int, dim: int) -> np.ndarray:
    """(N, D) float32 of unit length, random; takes their own memory only."""
    features = np.random.default_rng(0).standard_normal((num_samples, dim), dtype=np.float32)
    features /= np.sqrt(np.vecdot(features, features))[:, None]
    return features


def _take_turns(
    contenders: dict[str, Callable[[], object]], prepare: Callable[[], object]
) -> dict[str, tuple[float, ...]]:
    """Seconds of each contender's runs, one after the other's."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(REPETITIONS):
        for name, run in contenders.items():
            for _ in range(2):
                prepare()
                started = time.perf_counter()
                result = run()
                took = time.perf_counter() - started
                del result
            seconds[name].append(took)
    return {name: tuple(runs) for name, runs in seconds.items()}


def _remove(root: Path) -> None:
    for path in root.iterdir():
        shutil.rmtree(path)
    os.sync()


def _save(folder: Path, features: np.ndarray) -> None:
    folder.mkdir()
    with (folder / "features.npy").open("wb") as file:
        np.save(file, features)
        file.flush()
        os.fsync(file.fileno())


def _publish(folder: Path, features: np.ndarray, dtype: str) -> None:
    """Publish an artefact of one shard, as a training job of one rank does."""
    with artifacts.publish(folder, kind="memory", provenance=artifacts.Provenance("benchmark")) as draft:
        write_features(draft.path("features.parquet"), np.arange(len(features)), features, dtype)
        draft.add("features.parquet", rows=len(features))


def _peak_of_data(root: Path, name: str, num_samples: int, dim: int) -> float:
    """``Row.peak_of_data``, in a process of its own."""
    arguments = [sys.executable, __file__, "--peak", str(root), name, str(num_samples), str(dim)]
    return float(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)


def _print_peak(root: Path, name: str, num_samples: int, dim: int) -> None:
    what, dtype = name.split()
    _publish(root / "warm", unit_features(8, dim), dtype)
    read_features(root / "warm")
    shutil.rmtree(root / "warm")
    before = _memory_bytes("VmRSS")
    if what == "write":
        _publish(root / "again", unit_features(num_samples, dim), dtype)
        shutil.rmtree(root / "again")
    else:
        read_features(root / dtype)
    print((_memory_bytes("VmHWM") - before) / (num_samples * dim * 4))


def _memory_bytes(key: str) -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)]
    return int(line.split()[1]) * 1024


def main() -> None:
    """Print the table."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["--peak"]:
        _print_peak(Path(arguments[1]), arguments[2], int(arguments[3]), int(arguments[4]))
        return
    num_samples = int(arguments[0]) if arguments else 1_281_167
    dim = int(arguments[1]) if len(arguments) > 1 else 128
    folder = Path(arguments[2]) if len(arguments) > 2 else None
    print(f"{num_samples} x {dim} float32, {num_samples * dim * 4 / 1e6:.0f} MB, {REPETITIONS} runs")
    print(f"{'':20} {'median':>8} {'fastest':>8} {'slowest':>8} {'of numpy':>9} {'peak memory':>12}")
    for row in measure(num_samples, dim, folder):
        peak = f"{row.peak_of_data:.2f} x data" if row.peak_of_data is not None else ""
        times = f"{statistics.median(row.seconds):7.3f}s {min(row.seconds):7.3f}s {max(row.seconds):7.3f}s"
        print(f"{row.name:20} {times} {row.ratio:8.2f}x {peak:>12}")


if __name__ == "__main__":
    main()
