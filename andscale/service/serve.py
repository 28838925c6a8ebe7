"""The server process: opens a round, answers until it is stopped."""

import contextlib
import errno
import ipaddress
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from andscale.errors import RunError, UsageError

TOKEN_VARIABLE = "ANDSCALE_TOKEN"
_LOOK_S = 5.0
_BACKLOG = 1024


@dataclass(frozen=True, kw_only=True)
class ServeRequest:
    """What to serve, and where.

    Attributes:
        place: a run, or a folder that ``tools/discover.py`` wrote.
        round_number: None: the newest, and newer ones as they come.
        known: what is known of a foreign table's samples.
        features: the features of a foreign table.
        host: where to listen.
        port: 0: any that is free.
        token: what clients must bring; needed where others than this machine can connect.
    """

    place: Path
    round_number: int | None = None
    known: Path | None = None
    features: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8765
    token: str | None = None


def serve(request: ServeRequest) -> None:
    """Answer until Ctrl-C or SIGTERM.

    Raises:
        UsageError: an address for others without a token; no such round; packages that are not installed.
        RunError: the port is in use; something that is read is damaged.
    """
    check_address(request.host, request.token)
    try:
        import uvicorn

        from andscale.service.guard import Limits
    except ImportError as error:
        raise UsageError(f"the service needs more packages ({error}): install andscale[service]") from None
    with contextlib.closing(_listen(request.host, request.port)) as listener:
        app, snapshot = build_app(request, Limits())
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        stats = snapshot.stats
        index = f"{stats['index_kind']}, D = {stats['dim']}" if stats["dim"] else "no index"
        number = "" if stats["round"] is None else f", round {stats['round']}"
        print(
            f"http://{shown}:{port}/ serves {request.place}{number}: {stats['num_samples']:,} samples, {index}",
            flush=True,
        )
        config = uvicorn.Config(app, log_level="warning", access_log=False, backlog=_BACKLOG, server_header=False)
        with contextlib.suppress(KeyboardInterrupt):  # how uvicorn says that Ctrl-C has ended it
            uvicorn.Server(config).run(sockets=[listener])


def check_address(host: str, token: str | None) -> None:
    """UsageError for an address that others reach, without a token."""
    if not is_loopback(host) and not token:
        raise UsageError(
            f"--host {host} lets others connect: choose a secret and give it as {TOKEN_VARIABLE} or --token"
        )


def is_loopback(host: str) -> bool:
    """Whether a name or address can only be this machine: localhost, 127.0.0.0/8, ::1."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def token_from_environment(given: str | None) -> str | None:
    """The token of the command line, or that of the environment; UsageError for one that cannot be a header."""
    token = given if given is not None else os.environ.get(TOKEN_VARIABLE)
    if token is not None and not (token and token.isascii() and token.isprintable() and " " not in token):
        raise UsageError("a token is one word of printable ASCII characters")
    return token


def build_app(request: ServeRequest, limits: Any, look_s: float = _LOOK_S) -> tuple[Any, Any]:
    """The ASGI application and the snapshot that it begins with.

    Args:
        request: what to serve.
        limits: ``guard.Limits``.
        look_s: seconds between two looks for a newer round.
    """
    from andscale.service.api import Service, build_api
    from andscale.service.embedding import Embedder
    from andscale.service.guard import Figures, Guard
    from andscale.service.rounds import Rounds
    from andscale.service.searching import BatchedSearch
    from andscale.service.snapshot import Snapshot, open_snapshot

    snapshot = open_snapshot(request.place, request.round_number, request.known, request.features)
    rounds = Rounds(request.place, snapshot, request.known, follows=request.round_number is None)
    figures = Figures()

    def count_swap(new: Snapshot) -> None:
        figures.swaps.inc()
        figures.round.set(new.round_number or 0)

    rounds.on_swap = count_swap
    figures.round.set(snapshot.round_number or 0)
    search = BatchedSearch(limits.queries, figures.batch.observe)
    service = Service(rounds, search, Embedder(limits.image_pixels), limits, figures)

    @contextlib.asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        rounds.watch(look_s)
        yield
        rounds.close()
        search.close()

    api = build_api(service)
    api.router.lifespan_context = lifespan
    app = Guard(api, limits, figures, request.token)
    app.service = service  # type: ignore[attr-defined]
    return app, snapshot


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise RunError(f"port {port} of {host} is in use: name another with --port, or 0 for a free one") from None
        raise RunError(f"{host}, port {port} cannot be listened on: {error.strerror}") from None
    except OverflowError:
        listener.close()
        raise UsageError(f"--port {port}: 0 to 65535") from None
    return listener
