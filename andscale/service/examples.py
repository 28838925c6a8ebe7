"""Examples and descriptions for the OpenAPI document."""

from typing import Any

_SAMPLE: dict[str, Any] = {
    "sample_id": 17,
    "key": "000000017",
    "source": "train-images#17",
    "label": 4,
    "class": "coat",
    "entropy": 6.31,
    "is_anchor": True,
    "has_image": True,
}
_NEIGHBOUR = _SAMPLE | {"sample_id": 4711, "similarity": 0.93}


def _answer(description: str, example: Any, media_type: str = "application/json") -> dict[int | str, dict[str, Any]]:
    return {200: {"description": description, "content": {media_type: {"example": example}}}}


def _problem(description: str, status: int, detail: str) -> dict[str, Any]:
    example = {"type": "about:blank", "title": description, "status": status, "detail": detail}
    return {"description": description, "content": {"application/problem+json": {"example": example}}}


PROBLEMS: dict[int | str, dict[str, Any]] = {
    401: _problem("Unauthorized", 401, "this service wants a token: Authorization: Bearer TOKEN"),
    403: _problem("Forbidden", 403, "without a token only localhost and 127.0.0.1 are answered: set a token"),
    404: _problem("Not Found", 404, "there is no sample 70000: ids are 0 to 59999"),
    409: _problem("Conflict", 409, "classes are not known here: no sample has a label"),
    413: _problem("Request Entity Too Large", 413, "the body is larger than the limit of 33554432 bytes"),
    415: _problem("Unsupported Media Type", 415, "Content-Type: application/json, application/octet-stream or image/*"),
    422: _problem("Unprocessable Content", 422, "k = 0: 1 to 1000"),
    503: _problem("Service Unavailable", 503, "256 requests are being answered already: try again"),
}
NEIGHBOURS = _answer("Nearest first", {"round": 2, "sample": _SAMPLE, "source": "table", "neighbours": [_NEIGHBOUR]})
SEARCH = _answer("Of each vector, nearest first", {"round": 2, "results": [{"neighbours": [_NEIGHBOUR]}]})


def search_body(dim: int | None, most_vectors: int) -> dict[str, Any]:
    """What /v1/search takes.

    Args:
        dim: D; None where nothing can be searched.
        most_vectors: of one search.
    """
    vector: dict[str, Any] = {"type": "array", "items": {"type": "number"}, "description": "not zero"}
    vector |= {} if dim is None else {"minItems": dim, "maxItems": dim}
    vectors = {"type": "array", "minItems": 1, "maxItems": most_vectors, "items": vector}
    binary = {"type": "string", "format": "binary"}
    return {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"type": "object", "required": ["vectors"], "properties": {"vectors": vectors}},
                "example": {"vectors": [[0.1] * (dim or 2)]},
            },
            "application/octet-stream": {
                "schema": binary | {"description": "little-endian float32, D numbers a vector; say D as X-Dim"}
            },
            "image/*": {"schema": binary | {"description": "JPEG, PNG, WebP or BMP"}},
        },
    }


SAMPLES = _answer("By rising entropy", {"round": 2, "total": 1, "samples": [_SAMPLE]})
SAMPLE = _answer(
    "The sample",
    _SAMPLE | {"round": 2, "neighbour_ids": [4711], "similarities": [0.93], "k_occurrence": 3},
)
THUMBNAIL: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "WebP",
        "content": {"image/webp": {"schema": {"type": "string", "format": "binary"}}},
    },
    304: {"description": "As it was"},
}
ROUNDS = _answer(
    "Ascending",
    {
        "current": 2,
        "rounds": [
            {
                "round": 2,
                "num_samples": 60000,
                "num_neighbours": 1,
                "num_anchors": 30000,
                "created": "2026-11-25T09:00:00+00:00",
            }
        ],
    },
)
STATS = _answer(
    "Figures",
    {
        "round": 2,
        "name": "fashion_mnist_demo",
        "num_samples": 60000,
        "num_neighbours": 1,
        "num_anchors": 30000,
        "table": {"mode": "approximate", "recall_at_1": 0.98, "recall_at_k": 0.97},
        "dim": 128,
        "index_kind": "flat",
        "labelled": True,
        "has_classes": True,
        "classes": ["t-shirt", "trouser"],
        "has_images": True,
        "has_model": True,
        "entropy": {"edges": [5.0, 6.0, 7.0], "counts": [20000, 40000], "anchors": [20000, 10000]},
        "purity": {
            "at_1": 0.74,
            "at_k": 0.74,
            "anchors_at_1": 0.82,
            "anchors_at_k": 0.82,
            "by_class": [{"label": 0, "class": "t-shirt", "num_samples": 6000, "at_1": 0.7, "at_k": 0.7}],
        },
        "limits": {"k": 1000, "batch": 1024, "body_bytes": 33554432, "image_pixels": 50000000},
    },
)
HEALTH = _answer("It answers", {"status": "ok", "round": 2, "complaint": None})
METRICS = _answer("Prometheus text", "andscale_round 2.0\n", "text/plain")
