"""Whether FAISS here is whole: its build, the libraries beside it, and whether its GPUs find what the CPU finds.

FAISS and torch bring CUDA libraries of their own. Mixed, they have been seen to give wrong answers without an error.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

import numpy as np

from andscale.indexing.faiss_index import build_flat, import_faiss, num_gpus, to_gpu

_PACKAGES = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs", "faiss-gpu-cu11", "faiss-gpu-cu12")
_NUM_ROWS, _NUM_QUERIES, _DIM, _K = 20_000, 256, 64, 5
_TOLERANCE = 2e-3
"""Of inner products of unit vectors; GPUs may round factors to ten bits."""
_LIBRARY = re.compile(r"/(lib(?:cudart|cublas|cublasLt|nccl))[^/]*?\.so\.?(\d*)")


@dataclass(frozen=True)
class FaissBuild:
    """What is installed as ``faiss``.

    Attributes:
        version: of the module.
        options: what it was compiled with.
        packages: distributions that bring it, with versions; more than one overwrite each other.
        has_gpu: whether it can use GPUs.
        num_gpus: that it sees.
        cuda_major: of the CUDA that its package asks for; None where that is not said.
    """

    version: str
    options: str
    packages: tuple[str, ...]
    has_gpu: bool
    num_gpus: int
    cuda_major: int | None


def faiss_build() -> FaissBuild:
    """Look at the installed FAISS; UsageError when there is none."""
    faiss = import_faiss()
    packages, cuda = [], None
    for name in _PACKAGES:
        try:
            packages.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
        cuda = cuda or cuda_of(requires(name) or [])
    options = faiss.get_compile_options().strip()
    return FaissBuild(
        faiss.__version__, options, tuple(packages), hasattr(faiss, "StandardGpuResources"), num_gpus(), cuda
    )


def cuda_of(requirements: Iterable[str]) -> int | None:
    """The CUDA major that a package's requirements name: ``nvidia-cublas-cu12``, ``nvidia-cublas<14,>=13``."""
    for requirement in requirements:
        match = re.match(r"nvidia-[a-z-]+-cu(\d+)", requirement) or re.match(
            r"nvidia-(?:cublas|cuda-runtime)\b.*?(?:>=|==|~=)(\d+)", requirement
        )
        if match:
            return int(match[1])
    return None


def libraries_twice(maps: str) -> list[str]:
    """CUDA libraries that a process has mapped from more than one major version.

    Args:
        maps: the text of ``/proc/self/maps``.
    """
    majors: dict[str, set[str]] = {}
    for match in _LIBRARY.finditer(maps):
        if match[2]:
            majors.setdefault(match[1], set()).add(match[2])
    return [f"{name} {' and '.join(sorted(found))}" for name, found in sorted(majors.items()) if len(found) > 1]


def compare_with_gpus() -> str:
    """Search the same random vectors on the CPU and on all GPUs; returns what differs, '' where nothing does."""
    rng = np.random.default_rng(11)
    features = rng.normal(size=(_NUM_ROWS, _DIM)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    queries = features[:_NUM_QUERIES]
    index = build_flat(features)
    on_cpu = index.search(queries, _K)
    return difference(features, queries, on_cpu, to_gpu(index).search(queries, _K))


def difference(
    features: np.ndarray,
    queries: np.ndarray,
    expected: tuple[np.ndarray, np.ndarray],
    found: tuple[np.ndarray, np.ndarray],
) -> str:
    """What is wrong with an answer: '' where it is as good as the expected one, up to rounding and ties.

    Args:
        features: (N, D) float32, unit length.
        queries: (Q, D) float32, unit length.
        expected: (Q, K) similarities, falling, and (Q, K) ids.
        found: likewise.
    """
    scores, ids = found
    if ids.shape != expected[1].shape or scores.shape != expected[0].shape:
        return f"answers of shape {ids.shape}, not {expected[1].shape}"
    if (ids < 0).any() or (ids >= len(features)).any():
        return f"{((ids < 0) | (ids >= len(features))).sum()} of {ids.size} ids are of no vector"
    if not np.isfinite(scores).all():
        return f"{(~np.isfinite(scores)).sum()} of {scores.size} similarities are not finite"
    true = np.einsum("qd,qkd->qk", queries.astype(np.float64), features[ids].astype(np.float64))
    repeated = (np.diff(np.sort(ids, axis=1), axis=1) == 0).any(axis=1)
    wrong = {
        "similarities are not those of their ids": np.abs(scores - true).max(axis=1) > _TOLERANCE,
        "nearest vectors are not the nearest": np.abs(true - expected[0]).max(axis=1) > _TOLERANCE,
        "answers name a vector twice": repeated,
    }
    for what, bad in wrong.items():
        if bad.any():
            return f"{what} for {bad.sum()} of {len(bad)} queries"
    return ""
