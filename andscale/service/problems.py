"""Errors of the service in the form application/problem+json (RFC 9457)."""

import json
from collections.abc import Mapping
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import Response

MEDIA_TYPE = "application/problem+json"


class ProblemError(Exception):
    """An answer that is an error; ``detail`` says what is wrong and what to do."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None):
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, dict(headers or {})


def problem_response(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """The error as an answer."""
    title = HTTPStatus(status).phrase
    body = json.dumps({"type": "about:blank", "title": title, "status": status, "detail": detail})
    return Response(body, status, dict(headers or {}), MEDIA_TYPE)


async def answer_problem(_: Request, error: Exception) -> Response:
    """FastAPI's handler of ``ProblemError``."""
    assert isinstance(error, ProblemError)
    return problem_response(error.status, error.detail, error.headers)


async def answer_invalid(_: Request, error: Exception) -> Response:
    """FastAPI's handler of parameters that are not what the API says: the first of them is named."""
    first = error.errors()[0]  # type: ignore[attr-defined]
    where = ".".join(str(part) for part in first["loc"])
    return problem_response(422, f"{where}: {first['msg']}")


async def answer_http(_: Request, error: Exception) -> Response:
    """FastAPI's handler of unknown paths and methods."""
    status: int = error.status_code  # type: ignore[attr-defined]
    headers: Mapping[str, str] | None = error.headers  # type: ignore[attr-defined]
    return problem_response(status, f"{HTTPStatus(status).phrase}: see /docs for what there is", headers)


async def answer_failure(_: Request, error: Exception) -> Response:
    """FastAPI's handler of everything else, which goes on to the log."""
    return problem_response(500, f"the service failed: {type(error).__name__}; its log says where")
