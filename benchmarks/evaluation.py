"""Evaluation: weighted kNN at four K beside FAISS's search alone, and linear classifiers beside the bare network.

python -m benchmarks.evaluation [NUM_TRAIN NUM_QUERIES]
"""

import statistics
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from andscale.config import ModelConfig
from andscale.config_file import build_config
from andscale.data.reader import Batch
from andscale.distributed import World
from andscale.evaluation.evaluate import REPORTED_K
from andscale.evaluation.knn import weighted_knn
from andscale.evaluation.linear import LinearTask, Probe, Probes, train_step
from andscale.indexing.faiss_index import import_faiss
from andscale.training.backbones import build_backbone
from benchmarks.data import clustered_unit_vectors

REPETITIONS = 3
_DIM, _CLASSES, _BATCH = 128, 10, 256


def main() -> None:
    """Print both tables."""
    num_train, num_queries = (int(a) for a in sys.argv[1:3]) if len(sys.argv) > 2 else (60_000, 10_000)
    print(f"{num_queries:,} queries, {num_train:,} x {_DIM} training samples, {torch.get_num_threads()} threads")
    _print("weighted kNN", knn_contenders(num_train, num_queries))
    print(f"\n{_BATCH} resident images of 28 x 28, small_resnet, all five layers")
    _print("linear classifiers", linear_contenders())


def knn_contenders(num_train: int, num_queries: int) -> dict[str, Callable[[], object]]:
    """Ours at all K, FAISS's search alone at the largest, and the votes of a search by numpy's np.add.at at that K."""
    rows = clustered_unit_vectors(num_train + num_queries, _DIM)
    train, queries = rows[:num_train], rows[num_train:]
    labels = np.random.default_rng(0).integers(0, _CLASSES, num_train).astype(np.int32)
    faiss, most = import_faiss(), min(max(REPORTED_K), num_train)

    def search() -> Any:
        return faiss.knn(queries, train, most, metric=faiss.METRIC_INNER_PRODUCT)

    def search_and_add_at() -> object:
        similarities, ids = search()
        votes = np.zeros((num_queries, _CLASSES))
        which = np.repeat(np.arange(num_queries), most)
        np.add.at(votes, (which, labels[ids].ravel()), np.exp(similarities.astype(np.float64).ravel() / 0.07))
        return votes.argmax(axis=1)

    return {
        f"FAISS search, K = {most}": search,
        f"search, np.add.at, K = {most}": search_and_add_at,
        f"andscale, K = {', '.join(map(str, REPORTED_K))}": lambda: weighted_knn(
            train, labels, queries, REPORTED_K, 0.07
        ),
    }


def linear_contenders() -> dict[str, Callable[[], object]]:
    """The network's forward pass alone, and a step of the classifiers on top of it."""
    network = build_backbone(ModelConfig(backbone="small_resnet"), 0).eval()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    config = build_config({"data": {"dataset": "none"}}, "benchmark")
    labels = np.random.default_rng(0).integers(0, _CLASSES, _BATCH).astype(np.int32)
    reader: Any = SimpleNamespace(catalogue=SimpleNamespace(labels=labels), device=torch.device("cpu"))
    task = LinearTask(network, {"train": reader, "val": reader}, config, World(), 0)
    images = torch.randn(_BATCH, 3, 28, 28).contiguous(memory_format=torch.channels_last)
    batch = Batch(0, torch.arange(_BATCH), images, [_BATCH])
    probes = Probes({
        name: Probe(torch.zeros(x.shape[1]), torch.ones(x.shape[1]), x.shape[1:], _CLASSES)
        for name, x in task.pooled(images).items()
    })  # fmt: skip
    optimizer = torch.optim.SGD(probes.parameters(), lr=0.01, momentum=0.9)

    def forward() -> object:
        with torch.no_grad():
            return network(images)

    return {"forward alone": forward, "step of all classifiers": lambda: train_step(task, probes, optimizer, batch)}


def _print(title: str, contenders: dict[str, Callable[[], object]]) -> None:
    """Run the contenders in turn; one unmeasured run of each first."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run()
    for _ in range(REPETITIONS):
        for name, run in contenders.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    first = next(iter(seconds.values()))
    print(f"| {title} | s, median | of the first |\n|---|---|---|")
    for name, times in seconds.items():
        ratio = statistics.median(t / f for t, f in zip(times, first, strict=True))
        print(f"| {name} | {statistics.median(times):.3f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
