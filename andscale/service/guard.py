"""What stands before every route: token or name, limits on bodies and on concurrency, headers, metrics; plain ASGI."""

import hmac
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qs, urlsplit

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.responses import Response

from andscale.service.problems import ProblemError, problem_response
from andscale.service.serve import TOKEN_VARIABLE, is_loopback

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_OPEN_PATHS = ("/", "/healthz")
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
]
_POLICY = (b"content-security-policy", b"default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'")
_DOCS_POLICY = (
    b"content-security-policy",
    b"default-src 'self' 'unsafe-inline' https://cdn.jsdelivr.net; img-src 'self' data: https://fastapi.tiangolo.com",
)
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


@dataclass(frozen=True)
class Limits:
    """What one client may ask for."""

    neighbours: int = 1000
    """Largest K."""
    queries: int = 1024
    """Vectors of one search."""
    body_bytes: int = 32 << 20
    image_pixels: int = 50_000_000
    concurrency: int = 256
    """Requests that are answered at a time; more are told to come again."""
    answers: int = 100_000
    """Queries times K of one search."""


class Figures:
    """The service's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        names = ["route", "status"]
        self.requests = Counter("andscale_requests", "Requests by route and status.", names, registry=self.registry)
        self.seconds = Histogram(
            "andscale_request_seconds", "Time to answer.", ["route"], registry=self.registry, buckets=_SECONDS
        )
        self.batch = Histogram(
            "andscale_search_batch_queries",
            "Queries that were searched together.",
            registry=self.registry,
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
        )
        self.round = Gauge("andscale_round", "The round that is served.", registry=self.registry)
        self.swaps = Counter("andscale_swaps", "Rounds that took over.", registry=self.registry)
        self.in_flight = Gauge("andscale_requests_in_flight", "Requests being answered.", registry=self.registry)


class Guard:
    """Wraps an app.

    Args:
        app: what answers.
        limits: of one client.
        figures: what is counted.
        token: None: nothing is asked for, and only loopback addresses and localhost are answered.
    """

    def __init__(self, app: App, limits: Limits, figures: Figures, token: str | None):
        self._app, self._limits, self._figures = app, limits, figures
        self._token = None if token is None else token.encode()
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                policy = _DOCS_POLICY if scope["path"] == "/docs" else _POLICY
                message["headers"] = [*message.get("headers", ()), *_HEADERS, policy]
            await send(message)

        try:
            await self._admit(scope, receive, answer)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._figures.requests.labels(route, str(status)).inc()
            self._figures.seconds.labels(route).observe(time.perf_counter() - started)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        self._in_flight += 1
        self._figures.in_flight.set(self._in_flight)
        try:
            await self._app(scope, self._bounded(receive), send)
        finally:
            self._in_flight -= 1
            self._figures.in_flight.set(self._in_flight)

    def _refusal(self, scope: Scope, headers: dict[bytes, bytes]) -> Response | None:
        if self._token is None and not _is_of_this_machine(headers.get(b"host", b"")):
            detail = f"without a token only localhost and 127.0.0.1 are answered: set a token with {TOKEN_VARIABLE}"
            return problem_response(403, detail)
        if not self._is_allowed(scope, headers):
            detail = "this service wants a token: Authorization: Bearer TOKEN"
            return problem_response(401, detail, {"WWW-Authenticate": "Bearer"})
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._limits.body_bytes:
            return problem_response(413, self._too_large())
        if self._in_flight >= self._limits.concurrency and scope["path"] not in ("/healthz", "/metrics"):
            detail = f"{self._in_flight} requests are being answered already: try again"
            return problem_response(503, detail, {"Retry-After": "1"})
        return None

    def _is_allowed(self, scope: Scope, headers: dict[bytes, bytes]) -> bool:
        if self._token is None or scope["path"] in _OPEN_PATHS or scope["path"].startswith("/page/"):
            return True  # the page holds no data; it asks for the token
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer":
            given = parse_qs(scope["query_string"]).get(b"token", [b""])[0]
        return hmac.compare_digest(given, self._token)

    def _bounded(self, receive: Receive) -> Receive:
        received = 0

        async def bounded() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limits.body_bytes:
                raise ProblemError(413, self._too_large())
            return message

        return bounded

    def _too_large(self) -> str:
        return f"the body is larger than the limit of {self._limits.body_bytes} bytes"


@lru_cache(maxsize=256)
def _is_of_this_machine(host: bytes) -> bool:
    """Whether a ``Host`` is a name that nobody else can give to 127.0.0.1.

    A page of evil.example may let that name lead here (DNS rebinding); its scripts then read what is answered. No
    other address need be let through: without a token, ``check_address`` refuses to listen on any.
    """
    try:
        name = urlsplit("//" + host.decode("latin-1")).hostname
    except ValueError:
        return False
    return name is not None and is_loopback(name)
