"""The routes of the service; each takes one snapshot and answers from it alone."""

import asyncio
import hashlib
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Annotated

import numpy as np
from fastapi import FastAPI, Header, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import Response

import andscale
from andscale.service import examples
from andscale.service.bodies import (
    as_json,
    check_dim,
    check_id,
    check_k,
    check_names,
    check_number,
    vectors_from_bytes,
    vectors_from_json,
)
from andscale.service.embedding import Embedder
from andscale.service.guard import Figures, Limits
from andscale.service.listing import Filter, find_samples
from andscale.service.problems import ProblemError, answer_failure, answer_http, answer_invalid, answer_problem
from andscale.service.rounds import Rounds
from andscale.service.searching import BatchedSearch
from andscale.service.snapshot import Snapshot
from andscale.service.thumbnails import MEDIA_TYPE, thumbnail

_PAGE_FILES = {"index.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
_MAX_ID = (1 << 63) - 1
SampleId = Annotated[int, Path(ge=0, le=_MAX_ID, description="0 to N-1.")]
RoundNumber = Annotated[
    int | None, Query(alias="round", ge=0, le=99_999, description="An older round; the current one by default.")
]
NumNeighbours = Annotated[int | None, Query(description="How many neighbours; the table's K by default.")]
Dim = Annotated[
    int | None, Header(alias="X-Dim", description="D of the vectors, to be refused where the index has another.")
]
Found = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class Service:
    """What the routes need."""

    rounds: Rounds
    search: BatchedSearch
    embedder: Embedder
    limits: Limits
    figures: Figures


def build_api(service: Service) -> FastAPI:
    """The application, without what ``guard`` puts before it."""
    api = FastAPI(
        title="andscale neighbourhoods",
        version=andscale.__version__,
        description="What is near a sample, vectors or an image, over one committed round. Similarities are cosines.",
        redoc_url=None,
        exception_handlers={
            ProblemError: answer_problem,
            RequestValidationError: answer_invalid,
            HTTPException: answer_http,
            Exception: answer_failure,
        },
        responses=examples.PROBLEMS,
    )
    _add_neighbours(api, service)
    _add_search(api, service)
    _add_samples(api, service)
    _add_rounds(api, service)
    _add_page(api, service)
    return api


def _add_neighbours(api: FastAPI, service: Service) -> None:
    @api.get("/v1/neighbours/{sample_id}", summary="Neighbours of a sample", responses=examples.NEIGHBOURS)
    async def neighbours(sample_id: SampleId, k: NumNeighbours = None, round_number: RoundNumber = None) -> Response:
        """Up to K come from the round's table; beyond, ``source`` is ``index``, whose answers follow the table's."""
        snapshot = await _take(service, round_number)
        table = snapshot.subject.table
        check_id(sample_id, len(table))
        count = table.num_neighbours if k is None else k
        check_k(count, service.limits, len(table))
        if count <= table.num_neighbours:
            source, ids, similarities = (
                "table",
                table.neighbour_ids[sample_id, :count],
                table.similarities[sample_id, :count],
            )
        else:
            source = "index"
            ids, similarities = await _beyond_table(service, snapshot, sample_id, count)
        found = snapshot.neighbours(ids, similarities)
        sample = snapshot.sample(sample_id)
        return as_json({"round": snapshot.round_number, "sample": sample, "source": source, "neighbours": found})


async def _take(service: Service, round_number: int | None) -> Snapshot:
    """The snapshot of one request; another round's table may have to be read, beside the queries."""
    current = service.rounds.current
    if round_number is None or round_number == current.round_number:
        return current
    return await run_in_threadpool(service.rounds.take, round_number)


async def _beyond_table(service: Service, snapshot: Snapshot, sample_id: int, count: int) -> Found:
    """More neighbours than the table has, (count,) ids and similarities: the table's, then others of the index.

    So a larger K adds neighbours and never changes those of a smaller one, also where the index misses some of them.
    """
    table = snapshot.subject.table
    _needs_index(snapshot, f"k = {count}: the table has {table.num_neighbours}")
    known = table.neighbour_ids[sample_id]
    similarities, ids = await service.search.search(snapshot, snapshot.vector(sample_id)[None], count + 1)
    others = np.flatnonzero(~np.isin(ids[0], [sample_id, *known]))[: count - len(known)]
    return (
        np.concatenate([known, ids[0, others]]),
        np.concatenate([table.similarities[sample_id], similarities[0, others]]),
    )


def _needs_index(snapshot: Snapshot, what: str) -> None:
    if snapshot.index is None:
        why = "name the features with --features" if snapshot.round_number is None else "it is not the current round"
        raise ProblemError(409, f"{what}, and there is no index here to search: {why}")


def _add_search(api: FastAPI, service: Service) -> None:
    body = examples.search_body(service.rounds.current.stats["dim"], service.limits.queries)

    @api.post(
        "/v1/search", summary="Neighbours of vectors or of an image", responses=examples.SEARCH,
        openapi_extra={"requestBody": body},
    )  # fmt: skip
    async def search(request: Request, k: NumNeighbours = None, dim: Dim = None) -> Response:
        """Vectors are scaled to unit length; an image is embedded by the model whose features the index holds."""
        snapshot = service.rounds.current
        _needs_index(snapshot, "a search")
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        body = await request.body()
        count = min(10, len(snapshot) - 1) if k is None else k
        check_k(count, service.limits, len(snapshot))
        check_dim(dim, snapshot.index.d)
        if kind == "application/json":
            queries = vectors_from_json(body, snapshot.index.d, service.limits)
        elif kind == "application/octet-stream":
            queries = vectors_from_bytes(body, snapshot.index.d, service.limits)
        elif kind.startswith("image/"):
            queries = await run_in_threadpool(service.embedder.embed, snapshot, body)
        else:
            raise ProblemError(415, "Content-Type: application/json, application/octet-stream or image/*")
        check_k(count, service.limits, len(snapshot), len(queries))
        similarities, ids = await service.search.search(snapshot, queries, count)
        results = [{"neighbours": snapshot.neighbours(i, s)} for i, s in zip(ids, similarities, strict=True)]
        return as_json({"round": snapshot.round_number, "results": results})


def _add_samples(api: FastAPI, service: Service) -> None:
    @api.get("/v1/samples", summary="Samples by key, class, entropy", responses=examples.SAMPLES)
    async def samples(  # noqa: PLR0913, PLR0917 - the parameters of a query
        request: Request,
        key: Annotated[str | None, Query(max_length=500, description="A part of the key or source.")] = None,
        class_name: Annotated[str | None, Query(alias="class", max_length=500, description="Name or number.")] = None,
        entropy_min: Annotated[float | None, Query(description="nats")] = None,
        entropy_max: Annotated[float | None, Query(description="nats")] = None,
        anchor: Annotated[bool | None, Query(description="Anchors, or instances.")] = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        offset: Annotated[int, Query(ge=0, le=_MAX_ID)] = 0,
        round_number: RoundNumber = None,
    ) -> Response:
        """By rising entropy. A parameter that is not one of these is refused: left out, it would mean all samples."""
        known = [field.alias for field in request.scope["route"].dependant.query_params]
        check_names(request.query_params, known)
        check_number("entropy_min", entropy_min)
        check_number("entropy_max", entropy_max)
        snapshot = await _take(service, round_number)
        wanted = Filter(key, class_name, entropy_min, entropy_max, anchor)
        return as_json(await run_in_threadpool(find_samples, snapshot, wanted, offset, limit))

    @api.get("/v1/samples/{sample_id}", summary="One sample", responses=examples.SAMPLE)
    async def sample(sample_id: SampleId, round_number: RoundNumber = None) -> Response:
        """With the ids and similarities of its neighbours, and how often it is one itself."""
        snapshot = await _take(service, round_number)
        table = snapshot.subject.table
        check_id(sample_id, len(table))
        more = {
            "round": snapshot.round_number,
            "neighbour_ids": table.neighbour_ids[sample_id].tolist(),
            "similarities": table.similarities[sample_id].tolist(),
            "k_occurrence": int(snapshot.occurrence[sample_id]),
        }
        return as_json(snapshot.sample(sample_id) | more)

    @api.get("/v1/samples/{sample_id}/thumbnail", summary="A small picture", responses=examples.THUMBNAIL)
    async def picture(
        request: Request, sample_id: SampleId, size: Annotated[int, Query(ge=16, le=512)] = 128
    ) -> Response:
        """WebP, its longer side ``size`` pixels."""
        snapshot = service.rounds.current
        check_id(sample_id, len(snapshot))
        dataset = snapshot.subject.dataset
        name = f"{'' if dataset is None else dataset.fingerprint}:{sample_id}:{size}"
        tag = f'"{hashlib.blake2b(name.encode(), digest_size=12).hexdigest()}"'
        headers = {"ETag": tag, "Cache-Control": "private, max-age=86400"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        data = await run_in_threadpool(thumbnail, snapshot, sample_id, size)
        return Response(data, media_type=MEDIA_TYPE, headers=headers)


def _add_rounds(api: FastAPI, service: Service) -> None:
    @api.get("/v1/rounds", summary="Rounds that can be asked for", responses=examples.ROUNDS)
    async def rounds() -> Response:
        """The current one is answered from where nothing else is said."""
        current = service.rounds.current
        records = await run_in_threadpool(service.rounds.records)
        return as_json({"current": current.round_number, "rounds": records})

    @api.get("/v1/stats", summary="Figures of a round", responses=examples.STATS)
    async def stats(round_number: RoundNumber = None) -> Response:
        """Entropy histogram; purity where every sample has a label; the limits of this service.

        ``table``: whether its neighbours are exact, or their recall where ``mode`` is ``approximate``; null where its
        manifest does not say. ``labelled``: every sample has a label; ``has_classes``: some have.
        """
        snapshot = await _take(service, round_number)
        figures = await run_in_threadpool(lambda: snapshot.stats)
        limits = asdict(service.limits)
        shown = {"k": limits["neighbours"], "batch": limits["queries"]}
        shown |= {key: limits[key] for key in ("body_bytes", "image_pixels")}
        return as_json(figures | {"limits": shown})

    @api.get("/healthz", summary="Whether it answers, and from what", responses=examples.HEALTH)
    async def healthz() -> Response:
        """``complaint`` says what is wrong with newer rounds, or that the served one is gone from the disk."""
        complaint = service.rounds.complaint or None
        return as_json({"status": "ok", "round": service.rounds.current.round_number, "complaint": complaint})

    @api.get("/metrics", summary="For Prometheus", responses=examples.METRICS)
    async def metrics() -> Response:
        """Requests, seconds, batches, the round and its swaps."""
        return Response(generate_latest(service.figures.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _add_page(api: FastAPI, service: Service) -> None:
    @api.get("/", include_in_schema=False)
    async def page() -> Response:
        return await asyncio.to_thread(_page_file, "index.html")

    @api.get("/page/{name}", include_in_schema=False)
    async def page_file(name: str) -> Response:
        return await asyncio.to_thread(_page_file, name)


def _page_file(name: str) -> Response:
    if name not in _PAGE_FILES:
        raise ProblemError(404, f"the page consists of {', '.join(_PAGE_FILES)}")
    data = (files("andscale.service") / "page" / name).read_bytes()
    return Response(data, media_type=_PAGE_FILES[name], headers={"Cache-Control": "no-cache"})
