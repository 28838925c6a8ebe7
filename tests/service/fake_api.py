"""The neighbourhood service's API over made-up data, for tests of the page: deterministic, on a free port."""

import contextlib
import io
import socket
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

PAGE = Path(__file__).resolve().parents[2] / "andscale" / "service" / "page"
SAMPLES, DIM, NEIGHBOURS, CLASSES = 240, 8, 12, 6
QUERY_NAMES = {"round", "k", "key", "class", "entropy_min", "entropy_max", "anchor", "limit", "offset", "size", "token"}
FIRST_ID = 1000  # ids do not start at nought
HOSTILE_KEYS = {
    3: "<script>alert(1)</script>",
    4: '"><img src=x onerror=alert(2)>',
    5: "long-" + "k" * 295,
    6: "first line\nsecond line\ttab",
    7: "\u202egnp.txet tfel ot thgir\u2067 \u05d0\u05d1\u05d2",
    8: "javascript:alert(3)",
    9: "a/b?c=d&e#f %41 ,+",
}
CLASS_NAMES = ["cat", "dog", "<b onmouseover=alert(4)>bold</b>", "tower & bridge", "c" * 300, "ship"]
POLICY = "default-src 'self'; img-src 'self' blob: data:"


@dataclass
class FakeApi:
    """Switches that a test may turn while the server runs."""

    labelled: bool = True
    without_label: tuple[int, ...] = ()
    has_images: bool = True
    has_model: bool = True
    token: str | None = None
    mode: str | None = "exact"
    recall: float | None = None
    rounds: list[int] = field(default_factory=lambda: [1, 2, 3])
    current: int = 3
    broken: bool = False
    requests: list[str] = field(default_factory=list)
    address: str = ""

    def features(self, round_number):
        """(SAMPLES, DIM) float32, unit length; sharper clusters in later rounds."""
        noise = np.random.default_rng(0).normal(size=(SAMPLES, DIM)) + np.random.default_rng(round_number).normal(
            scale=0.3, size=(SAMPLES, DIM)
        )
        x = noise + round_number * np.eye(DIM)[self.labels()] * 1.2
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)

    def labels(self):
        return np.arange(SAMPLES) % CLASSES

    def entropy(self, round_number):
        scale = np.random.default_rng(100 + round_number).gamma(4.0, 0.35, SAMPLES)
        return np.clip(4.6 - scale * round_number * 0.6, 0.4, 4.6)

    def sample(self, row, round_number):
        label = int(self.labels()[row]) if self.labelled and row not in self.without_label else None
        return {
            "sample_id": FIRST_ID + int(row),
            "key": None if row == 10 else HOSTILE_KEYS.get(int(row), f"images/{label}/{row:05d}.png"),
            "source": None if row % 2 else "train.tar",
            "label": label,
            "class": None if label is None else CLASS_NAMES[label],
            "entropy": float(self.entropy(round_number)[row]),
            "is_anchor": bool(self.entropy(round_number)[row] < np.median(self.entropy(round_number))),
            "has_image": self.has_images and int(row) % 11 != 1,
        }

    def nearest(self, vector, round_number, k, without=None):
        similarities = self.features(round_number) @ vector
        if without is not None:
            similarities[without] = -2
        order = np.argsort(-similarities, kind="stable")[:k]
        return [self.sample(i, round_number) | {"similarity": float(similarities[i])} for i in order]


class _Refused(Exception):
    def __init__(self, status, title, detail):
        self.answer = {"type": "about:blank", "title": title, "status": status, "detail": detail}


def _round(api, request):
    asked = request.query_params.get("round")
    if asked is None:
        return api.current
    if not asked.isdigit() or int(asked) not in api.rounds:
        raise _Refused(404, "No such round", f"there is no round {asked}")
    return int(asked)


def _row(api, request):
    row = int(request.path_params["id"]) - FIRST_ID
    if not 0 <= row < SAMPLES:
        raise _Refused(404, "No such sample", f"sample {row + FIRST_ID} is not in this round <b>at all</b>")
    return row


def _k(request):
    k = int(request.query_params.get("k", NEIGHBOURS))
    if not 1 <= k <= 100:
        raise _Refused(422, "k is out of range", f"k is {k}; it must be 1 to 100")
    return k


def _rounds(api, request):
    each = {"num_samples": SAMPLES, "num_neighbours": NEIGHBOURS, "num_anchors": SAMPLES // 2}
    rounds = [{"round": r, **each, "created": f"2026-03-0{r}T10:00:00+00:00"} for r in api.rounds]
    return {"current": api.current, "rounds": rounds}


def _stats(api, request):
    chosen = _round(api, request)
    entropy = api.entropy(chosen)
    counts, edges = np.histogram(entropy, 40)
    anchors, _ = np.histogram(entropy[entropy < np.median(entropy)], edges)
    by_class = [
        {"label": i, "class": name, "num_samples": SAMPLES // CLASSES, "at_1": 0.95 - 0.1 * i, "at_k": 0.3 + 0.1 * i}
        for i, name in enumerate(CLASS_NAMES)
    ]
    purity = {"at_1": 0.8, "at_k": 0.6, "anchors_at_1": 0.9, "anchors_at_k": 0.7, "by_class": by_class}
    return {
        "round": chosen,
        "name": "fake <i>run</i>",
        "num_samples": SAMPLES,
        "num_neighbours": NEIGHBOURS,
        "num_anchors": SAMPLES // 2,
        "table": {"mode": api.mode, "recall_at_1": None, "recall_at_k": api.recall},
        "dim": DIM if chosen == api.current else None,
        "index_kind": "flat" if chosen == api.current else None,
        "labelled": api.labelled and not api.without_label,
        "has_classes": api.labelled,
        "classes": CLASS_NAMES if api.labelled else [],
        "has_images": api.has_images,
        "has_model": api.has_model,
        "entropy": {"edges": edges.tolist(), "counts": counts.tolist(), "anchors": anchors.tolist()},
        "purity": purity if api.labelled and not api.without_label else None,
        "limits": {"k": 100, "batch": 64, "body_bytes": 1_000_000, "image_pixels": 10_000_000},
    }


def _samples(api, request):
    chosen, query = _round(api, request), request.query_params
    found = [api.sample(row, chosen) for row in range(SAMPLES)]
    if "key" in query:
        found = [s for s in found if query["key"] in f"{s['key'] or ''}\0{s['source'] or ''}"]
    if "class" in query:
        found = [s for s in found if s["class"] == query["class"]]
    if "anchor" in query:
        found = [s for s in found if s["is_anchor"] == (query["anchor"] == "true")]
    low, high = float(query.get("entropy_min", 0)), float(query.get("entropy_max", 99))
    found = [s for s in found if low <= s["entropy"] <= high]
    offset = int(query.get("offset", 0))
    return {"round": chosen, "total": len(found), "samples": found[offset : offset + int(query.get("limit", 50))]}


def _sample(api, request):
    chosen, row = _round(api, request), _row(api, request)
    near = api.nearest(api.features(chosen)[row], chosen, NEIGHBOURS, without=row)
    ids = [each["sample_id"] for each in near]
    similarities = [each["similarity"] for each in near]
    own = {"round": chosen, "neighbour_ids": ids, "similarities": similarities, "k_occurrence": row % 20}
    return api.sample(row, chosen) | own


def _neighbours(api, request):
    chosen, row, k = _round(api, request), _row(api, request), _k(request)
    near = api.nearest(api.features(chosen)[row], chosen, k, without=row)
    source = "table" if k <= NEIGHBOURS else "index"
    return {"round": chosen, "sample": api.sample(row, chosen), "source": source, "neighbours": near}


def _search(api, body, request):
    try:
        colour = np.asarray(Image.open(io.BytesIO(body)).convert("RGB").resize((1, 1)), np.float32)[0, 0]
    except OSError:
        raise _Refused(422, "That is no image", "the body cannot be decoded as an image") from None
    chosen = _round(api, request)
    vector = np.resize(colour / 255, DIM).astype(np.float32)
    return {"round": chosen, "results": [{"neighbours": api.nearest(vector, chosen, _k(request))}]}


def _thumbnail(api, request):
    row = _row(api, request)
    if not api.sample(row, api.current)["has_image"]:
        raise _Refused(404, "No image", f"sample {row + FIRST_ID} has no image")
    label = int(api.labels()[row])
    y, x = np.mgrid[0:32, 0:32]
    wave = 0.5 + 0.5 * np.sin(x / (2 + label) + row) * np.cos(y / 4 + row)
    pixels = np.stack([wave * c for c in np.random.default_rng(label).uniform(80, 255, 3)], -1).astype(np.uint8)
    body = io.BytesIO()
    Image.fromarray(pixels).save(body, "PNG")
    return Response(body.getvalue(), media_type="image/png", headers={"Cache-Control": "max-age=3600"})


def _app(api):
    def answering(view, guarded=True):
        async def endpoint(request):
            api.requests.append(f"{request.method} {request.url.path}?{request.url.query}")
            given = request.headers.get("authorization") or f"Bearer {request.query_params.get('token')}"
            try:
                if unknown := set(request.query_params) - QUERY_NAMES:
                    raise _Refused(422, "Unprocessable Entity", f"unknown: {unknown}")
                if guarded and api.token and given != f"Bearer {api.token}":
                    raise _Refused(401, "No token", "send Authorization: Bearer")
                if guarded and api.broken:
                    raise _Refused(503, "Busy", "all places are taken; try again in a second")
                body = [await request.body()] if request.method == "POST" else []
                answer = view(api, *body, request)
            except _Refused as refused:
                kind = "application/problem+json"
                answer = JSONResponse(refused.answer, refused.answer["status"], media_type=kind)
            answer = answer if isinstance(answer, Response) else JSONResponse(answer)
            answer.headers["Content-Security-Policy"] = POLICY
            answer.headers["X-Content-Type-Options"] = "nosniff"
            return answer

        return endpoint

    def file(name, kind):
        return answering(lambda api, request: FileResponse(PAGE / name, media_type=kind), guarded=False)

    return Starlette(
        routes=[
            Route("/", file("index.html", "text/html")),
            Route("/page/page.js", file("page.js", "text/javascript")),
            Route("/page/page.css", file("page.css", "text/css")),
            Route("/v1/rounds", answering(_rounds)),
            Route("/v1/stats", answering(_stats)),
            Route("/v1/samples", answering(_samples)),
            Route("/v1/samples/{id:int}", answering(_sample)),
            Route("/v1/samples/{id:int}/thumbnail", answering(_thumbnail)),
            Route("/v1/neighbours/{id:int}", answering(_neighbours)),
            Route("/v1/search", answering(_search), methods=["POST"]),
        ]
    )


@contextlib.contextmanager
def running(app):
    """Serves an application in a thread; gives its address, with a slash at the end."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()  # connections wait in the listener's queue until it runs
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


@contextlib.contextmanager
def serving(**switches):
    """A running fake; gives its FakeApi."""
    api = FakeApi(**switches)
    with running(_app(api)) as api.address:
        yield api
