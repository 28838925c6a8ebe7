"""What a search and a query may be given, and the answers' JSON."""

import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from starlette.responses import Response

from andscale.service.guard import Limits
from andscale.service.problems import ProblemError

_LEAST_LENGTH = 1e-12


def as_json(content: dict[str, Any]) -> Response:
    """An answer; NaN is no JSON and cannot occur."""
    return Response(json.dumps(content, allow_nan=False), media_type="application/json")


def vectors_from_json(body: bytes, dim: int, limits: Limits) -> np.ndarray:
    """``{"vectors": [[...], ...]}`` as (Q, D) float32, unit length."""
    try:
        content = json.loads(body)
        vectors = content["vectors"]
        if type(vectors) is not list or len(vectors) > limits.queries:
            raise ProblemError(422, f"vectors: a list of 1 to {limits.queries} vectors")
        if not all(type(row) is list and all(type(x) in (int, float) for x in row) for row in vectors):
            raise ProblemError(422, "vectors: every vector is a list of numbers")
        if {len(row) for row in vectors} != {dim}:
            raise ProblemError(422, f"vectors: every vector has {dim} numbers")
        values = np.array(vectors, np.float64)
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
        raise ProblemError(422, 'the body is no JSON of the form {"vectors": [[...], ...]}') from None
    return _unit_length(values)


def vectors_from_bytes(body: bytes, dim: int, limits: Limits) -> np.ndarray:
    """Little-endian float32 numbers, D a vector, as (Q, D) float32, unit length."""
    if not body or len(body) % (4 * dim):
        raise ProblemError(422, f"{len(body)} bytes are no vectors of {dim} float32 numbers")
    if len(body) // (4 * dim) > limits.queries:
        raise ProblemError(422, f"{len(body) // (4 * dim)} vectors: the limit is {limits.queries}")
    return _unit_length(np.frombuffer(body, "<f4").reshape(-1, dim).astype(np.float64))


def check_dim(sent: int | None, dim: int) -> None:
    """ProblemError for a D that is not the index's; of bytes alone, one vector of 2 D numbers is two vectors."""
    if sent is not None and sent != dim:
        raise ProblemError(422, f"X-Dim: vectors of {sent} numbers, the index holds vectors of {dim}")


def check_k(k: int, limits: Limits, num_samples: int, num_queries: int = 1) -> None:
    """ProblemError when so many neighbours cannot be had."""
    if not 1 <= k <= limits.neighbours:
        raise ProblemError(422, f"k = {k}: 1 to {limits.neighbours}")
    if k >= num_samples:
        raise ProblemError(422, f"k = {k}: there are {num_samples} samples, so at most {num_samples - 1} others")
    if k * num_queries > limits.answers:
        raise ProblemError(422, f"{num_queries} vectors times k = {k}: at most {limits.answers} neighbours an answer")


def check_id(sample_id: int, num_samples: int) -> None:
    """ProblemError when there is no such sample."""
    if not 0 <= sample_id < num_samples:
        raise ProblemError(404, f"there is no sample {sample_id}: ids are 0 to {num_samples - 1}")


def _unit_length(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # what overflows is refused below
        lengths = np.linalg.norm(values, axis=1)
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1) | ~(lengths > _LEAST_LENGTH) | ~np.isfinite(lengths))
    if len(bad):
        raise ProblemError(422, f"vectors: number {bad[0]} is zero, or not finite")
    unit: np.ndarray = np.ascontiguousarray(values / lengths[:, None], np.float32)
    return unit


def check_number(name: str, value: float | None) -> None:
    """ProblemError for NaN and infinities, which queries can spell."""
    if value is not None and not math.isfinite(value):
        raise ProblemError(422, f"{name}: a finite number")


def check_names(given: Iterable[str], known: list[str]) -> None:
    """ProblemError for a parameter of a query that there is none of; ``token`` is the guard's."""
    for name in given:
        if name not in (*known, "token"):
            shown = name[:100] if name.isidentifier() else repr(name[:100])
            raise ProblemError(422, f"{shown}: there is no such parameter; there are {', '.join(known)}")
