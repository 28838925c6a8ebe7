"""Exact neighbours and entropies of all samples.

Neighbours: FAISS proposes k + m candidates a sample, which are scored again in float64 and put into the canonical order
(larger similarity first, then smaller id), so that the answer does not depend on how a library cuts its blocks.
Entropies: one sweep over blocks of similarities; never anything of size N x N.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from andscale.errors import RunError, UsageError
from andscale.indexing.faiss_index import build_flat, to_gpu
from andscale.metrics import Progress

_MARGIN = 8
"""Candidates beyond k + 1 that FAISS is asked for: room for rounding and short runs of ties."""

_SEARCH_ROWS = 4096
_SHARP_TEMPERATURE = 0.01
"""Below this, float32 similarities divided by tau are too coarse for the promised entropies: float64 then."""

_ENTROPY_TOLERANCE = 1e-4
_SIMILARITY_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Discovery:
    """Neighbourhoods of all samples.

    Attributes:
        neighbour_ids: (N, K) int64, nearest first, ties by smaller id, the sample itself left out by id.
        similarities: (N, K) float32.
        entropies: (N,) float32, nats (eq 5).
        index: the FAISS index that was searched, on the CPU.
    """

    neighbour_ids: np.ndarray
    similarities: np.ndarray
    entropies: np.ndarray
    index: Any


def check_request(num_samples: int, num_neighbours: int, temperature: float) -> None:
    """Raise UsageError for k >= N, k < 1 or a temperature that is not positive."""
    if num_neighbours < 1:
        raise UsageError(f"k = {num_neighbours}: at least one neighbour is needed")
    if num_neighbours >= num_samples:
        raise UsageError(
            f"k = {num_neighbours} neighbours cannot be had from {num_samples} samples: k must be at most "
            f"{num_samples - 1}"
        )
    if not temperature > 0 or not np.isfinite(temperature):
        raise UsageError(f"temperature = {temperature}: it must be a positive number")


def discover(features: np.ndarray, num_neighbours: int, temperature: float, tile_bytes: int) -> Discovery:
    """Neighbours (eq 1) and entropies (eq 5) of every sample among all samples.

    Args:
        features: (N, D) float32, unit length.
        num_neighbours: K, below N.
        temperature: tau > 0.
        tile_bytes: size of a block of similarities that is held at a time.

    Raises:
        UsageError: K or tau out of range.
    """
    check_request(len(features), num_neighbours, temperature)
    index = build_flat(features)
    ids, similarities = find_neighbours(features, index, num_neighbours, tile_bytes)
    entropies = similarity_entropies(features, temperature, tile_bytes)
    return Discovery(ids, similarities, entropies, index)


def find_neighbours(
    features: np.ndarray, index: Any, num_neighbours: int, tile_bytes: int
) -> tuple[np.ndarray, np.ndarray]:
    """The K most similar other samples of every sample, in canonical order.

    Args:
        features: (N, D) float32, unit length.
        index: exact inner-product index over the same features.
        num_neighbours: K.
        tile_bytes: size of the blocks of candidates, and of those that rows with many ties are searched in.

    Returns:
        (N, K) int64 and (N, K) float32.
    """
    num_samples, dim = features.shape
    num_candidates = min(num_neighbours + 1 + _MARGIN, num_samples)
    searched = to_gpu(index)
    ids = np.empty((num_samples, num_neighbours), np.int64)
    similarities = np.empty((num_samples, num_neighbours), np.float32)
    undecided = []
    # float32 sums of D products: what two of them can differ by (unit vectors)
    rounding = 2.0**-22 * np.sqrt(dim)
    with Progress("neighbours", num_samples, "samples") as progress:
        # candidates are gathered once in float32 and once in float64: 12 bytes a number
        rows_per_search = max(1, min(_SEARCH_ROWS, tile_bytes // (12 * num_candidates * dim)))
        for start in range(0, num_samples, rows_per_search):
            rows = np.arange(start, min(start + rows_per_search, num_samples))
            scores, candidates = searched.search(features[rows], num_candidates)
            ids[rows], similarities[rows] = _rescore(features, rows, candidates, num_neighbours)
            if num_candidates < num_samples:
                # a sample outside the candidates can be as near as the k-th: FAISS's cut went through a tie
                undecided.append(rows[similarities[rows, -1] <= scores[:, -1] + rounding])
            progress.advance(len(rows))
    left = np.concatenate(undecided) if undecided else np.empty(0, np.int64)
    if len(left):
        exact_features = features.astype(np.float64)
        for block in _blocks(left, features, tile_bytes):
            ids[block], similarities[block] = _search_all(exact_features, block, num_neighbours)
    return ids, similarities


def similarity_entropies(features: np.ndarray, temperature: float, tile_bytes: int) -> np.ndarray:
    """Entropy of every sample's similarity distribution over all samples, itself included (eq 5).

        H_i = log sum_j e^{d_ij} - sum_j e^{d_ij} d_ij / sum_j e^{d_ij},   d_ij = (s_ij - max_j s_ij) / tau

    Both terms are sums of one sign, so float32 keeps H within 1e-4 nats of float64 (float64 below tau = 0.01).

    Args:
        features: (N, D) float32, unit length.
        temperature: tau > 0.
        tile_bytes: size of a block of similarities.

    Returns:
        (N,) float32, nats, in [0, log N].
    """
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    memory = torch.from_numpy(features).to(device)
    if temperature < _SHARP_TEMPERATURE:
        memory = memory.to(torch.float64)
    entropies = np.empty(len(features), np.float32)
    rows_per_block = max(1, tile_bytes // (2 * memory.element_size() * len(features)))  # similarities and weights
    with Progress("entropies", len(features), "samples") as progress:
        for start in range(0, len(features), rows_per_block):
            block = memory[start : start + rows_per_block]
            shifted = block @ memory.T  # (rows, N)
            shifted -= shifted.amax(dim=1, keepdim=True)
            shifted /= temperature
            weights = shifted.exp()
            total = weights.sum(dim=1)
            entropy = total.log() - weights.mul_(shifted).sum(dim=1) / total
            entropies[start : start + len(block)] = entropy.cpu().numpy()
            progress.advance(len(block))
    return entropies


def check_against_float64(features: np.ndarray, found: Discovery, temperature: float, rows: np.ndarray) -> None:
    """Search some rows again in float64 and compare (promise 5); neighbours are compared up to rounding ties.

    Args:
        features: (N, D) float32.
        found: what is to be checked.
        temperature: tau.
        rows: (n,) int64, the rows to check.

    Raises:
        RunError: a neighbour, a similarity or an entropy differs; the sample and both values are named.
    """
    num_neighbours = found.neighbour_ids.shape[1]
    exact_features = features.astype(np.float64)
    for block in _blocks(rows, exact_features, 512 * 1024**2):
        scores = exact_features[block] @ exact_features.T
        logits = scores / temperature
        logits -= logits.max(axis=1, keepdims=True)
        weights = np.exp(logits)
        total = weights.sum(axis=1)
        entropies = np.log(total) - (weights * logits).sum(axis=1) / total
        claimed = np.take_along_axis(scores, found.neighbour_ids[block], axis=1)
        scores[np.arange(len(block)), block] = -np.inf
        best = -np.sort(-np.partition(scores, -num_neighbours, axis=1)[:, -num_neighbours:], axis=1)
        _compare("similarity", block, found.similarities[block], best, _SIMILARITY_TOLERANCE)
        _compare("neighbour's similarity", block, claimed, best, _SIMILARITY_TOLERANCE)
        _compare("entropy", block, found.entropies[block], entropies, _ENTROPY_TOLERANCE)


def _compare(what: str, rows: np.ndarray, found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    found, expected = found.reshape(len(rows), -1), expected.reshape(len(rows), -1)
    wrong = ~(np.abs(found - expected) <= tolerance)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise RunError(
            f"the search disagrees with float64: {what} of sample {rows[row]} is {found[row, column]:.7g}, float64 "
            f"says {expected[row, column]:.7g} ({wrong.any(axis=1).sum()} of {len(rows)} rows differ). Nothing was "
            "published; check that FAISS and torch are built for the same CUDA"
        )


def _rescore(
    features: np.ndarray, rows: np.ndarray, candidates: np.ndarray, num_neighbours: int
) -> tuple[np.ndarray, np.ndarray]:
    """Score candidates (n, c) in float64, round to float32, order canonically without the sample itself, keep K."""
    queries = features[rows].astype(np.float64)
    exact = np.einsum("nd,ncd->nc", queries, features[candidates].astype(np.float64))
    similarities = exact.astype(np.float32)
    similarities[candidates == rows[:, None]] = -np.inf
    order = np.lexsort((candidates, -similarities), axis=1)[:, :num_neighbours]
    return np.take_along_axis(candidates, order, 1), np.take_along_axis(similarities, order, 1)


def _search_all(exact_features: np.ndarray, rows: np.ndarray, num_neighbours: int) -> tuple[np.ndarray, np.ndarray]:
    """The canonical K neighbours of some rows from all N similarities in float64: for rows with long runs of ties."""
    similarities = (exact_features[rows] @ exact_features.T).astype(np.float32)
    similarities[np.arange(len(rows)), rows] = -np.inf
    ids = np.empty((len(rows), num_neighbours), np.int64)
    kept = np.empty((len(rows), num_neighbours), np.float32)
    for row, values in enumerate(similarities):
        threshold = np.partition(values, -num_neighbours)[-num_neighbours]
        nearest = np.flatnonzero(values >= threshold)  # ascending ids
        order = np.argsort(-values[nearest], kind="stable")[:num_neighbours]
        ids[row], kept[row] = nearest[order], values[nearest[order]]
    return ids, kept


def _blocks(rows: np.ndarray, features: np.ndarray, tile_bytes: int) -> list[np.ndarray]:
    """Cut rows so that a block's float64 similarities to all samples, twice, stay within ``tile_bytes``."""
    size = max(1, tile_bytes // (16 * len(features)))
    return [rows[start : start + size] for start in range(0, len(rows), size)]
