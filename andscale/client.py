"""A client of the neighbourhood service; needs numpy and the standard library only.

Example:
    client = NeighbourhoodClient("http://127.0.0.1:8765")
    for neighbour in client.neighbours(17, k=10):
        print(neighbour.sample_id, neighbour.similarity)
"""

import http.client
import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

if TYPE_CHECKING:
    import numpy as np


class NeighbourhoodError(Exception):
    """The service refused, or did not answer; ``status`` is HTTP's, 0 where there was no answer."""

    def __init__(self, status: int, detail: str):
        super().__init__(f"{status}: {detail}" if status else detail)
        self.status, self.detail = status, detail


@dataclass(frozen=True)
class Sample:
    """What is known of a sample; None where it is not.

    Attributes:
        round: the round that the answer is from; None for a table without a run.
        entropy: nats.
    """

    round: int | None
    sample_id: int
    key: str | None
    source: str | None
    label: int | None
    class_name: str | None
    entropy: float
    is_anchor: bool
    has_image: bool


@dataclass(frozen=True)
class Neighbour(Sample):
    """A sample, and how similar it is to what was asked for (cosine)."""

    similarity: float


class NeighbourhoodClient:
    """Asks a service; each thread keeps a connection of its own.

    Args:
        url: ``http://HOST:PORT`` or https.
        token: what the service was started with.
        timeout_s: for one answer.
    """

    def __init__(self, url: str, token: str | None = None, timeout_s: float = 30):
        self._address = urlsplit(url)
        if self._address.scheme not in ("http", "https") or not self._address.hostname:
            raise ValueError(f"{url}: expected http://HOST:PORT or https://HOST:PORT")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._timeout_s = timeout_s
        self._of_thread = threading.local()

    def neighbours(self, sample_id: int, k: int | None = None, round_number: int | None = None) -> list[Neighbour]:
        """The nearest samples of a sample, nearest first; as many as the round's table has by default.

        Raises:
            NeighbourhoodError: no such sample or round, too many asked for, no answer.
        """
        answer = self._json("GET", f"/v1/neighbours/{sample_id}", {"k": k, "round": round_number})
        return [_neighbour(answer["round"], record) for record in answer["neighbours"]]

    def search(self, vectors: "np.ndarray", k: int = 10) -> list[list[Neighbour]]:
        """The nearest samples of each vector.

        Args:
            vectors: (Q, D) or (D,) numbers; the service scales them to unit length.
            k: how many.

        Raises:
            NeighbourhoodError: vectors of another dimension than the service's index, too many of them, no answer.
        """
        import numpy as np

        queries = np.atleast_2d(np.asarray(vectors))
        if queries.ndim != 2:
            raise ValueError(f"vectors of shape {queries.shape}: expected (Q, D) or (D,)")
        count, dim = queries.shape
        headers = {"Content-Type": "application/octet-stream", "X-Dim": str(dim)}
        results = self._search(queries.astype("<f4").tobytes(), headers, k)
        if len(results) != count:  # a service that does not know X-Dim has cut the bytes elsewhere
            held = self.stats()["dim"]
            raise NeighbourhoodError(422, f"{dim} numbers a vector were sent, the service's index has {held}")
        return results

    def search_image(self, image: "Path | str | bytes", k: int = 10) -> list[Neighbour]:
        """The nearest samples of an image, as a file or its encoded bytes."""
        data = image if isinstance(image, bytes) else Path(image).read_bytes()
        return self._search(data, {"Content-Type": "image/unknown"}, k)[0]

    def sample(self, sample_id: int, round_number: int | None = None) -> Sample:
        """One sample."""
        answer = self._json("GET", f"/v1/samples/{sample_id}", {"round": round_number})
        return Sample(**_fields(answer["round"], answer))

    def samples(  # noqa: PLR0913 - the parameters of the route
        self,
        *,
        key: str | None = None,
        class_name: str | None = None,
        entropy_min: float | None = None,
        entropy_max: float | None = None,
        anchor: bool | None = None,
        limit: int | None = None,
        offset: int | None = None,
        round_number: int | None = None,
    ) -> tuple[int, list[Sample]]:
        """How many samples are so, and some of them by rising entropy.

        Args:
            key: a part of the key or source.
            class_name: name or number of the class.
            entropy_min: nats.
            entropy_max: nats.
            anchor: anchors, or instances.
            limit: how many to give; the service's number by default.
            offset: how many to leave out before.
            round_number: the current one by default.
        """
        wanted = {
            "key": key,
            "class": class_name,
            "entropy_min": entropy_min,
            "entropy_max": entropy_max,
            "anchor": anchor,
            "limit": limit,
            "offset": offset,
            "round": round_number,
        }
        answer = self._json("GET", "/v1/samples", wanted)
        return answer["total"], [Sample(**_fields(answer["round"], record)) for record in answer["samples"]]

    def rounds(self) -> dict[str, Any]:
        """``current`` and ``rounds``."""
        return self._json("GET", "/v1/rounds")

    def stats(self, round_number: int | None = None) -> dict[str, Any]:
        """Figures of a round, and the service's limits."""
        return self._json("GET", "/v1/stats", {"round": round_number})

    def thumbnail(self, sample_id: int, size: int = 128) -> bytes:
        """A small picture, WebP."""
        return self._ask("GET", f"/v1/samples/{sample_id}/thumbnail", {"size": size})

    def close(self) -> None:
        """Close this thread's connection."""
        connection = getattr(self._of_thread, "connection", None)
        if connection is not None:
            connection.close()

    def _search(self, body: bytes, headers: dict[str, str], k: int) -> list[list[Neighbour]]:
        answer = json.loads(self._ask("POST", "/v1/search", {"k": k}, body, headers))
        return [[_neighbour(answer["round"], n) for n in result["neighbours"]] for result in answer["results"]]

    def _json(self, method: str, path: str, query: dict[str, Any] | None = None) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self._ask(method, path, query or {}))
        return answer

    def _ask(
        self,
        method: str,
        path: str,
        query: dict[str, Any],
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> bytes:
        given = {name: str(v).lower() if isinstance(v, bool) else v for name, v in query.items() if v is not None}
        target = f"{self._address.path.rstrip('/')}{quote(path)}" + (f"?{urlencode(given)}" if given else "")
        for attempt in (1, 2):
            try:
                connection = self._connection()
                connection.request(method, target, body, self._headers | (headers or {}))
                answer = connection.getresponse()
                data = answer.read()
                break
            except (OSError, http.client.HTTPException) as error:
                self.close()
                # a kept connection that the service closed meanwhile; asking again changes nothing there
                if attempt == 2 or isinstance(error, TimeoutError | ConnectionRefusedError):
                    raise NeighbourhoodError(0, f"{self._address.netloc} does not answer: {error}") from None
        if answer.status >= 400:
            raise NeighbourhoodError(answer.status, _detail(data))
        return data

    def _connection(self) -> http.client.HTTPConnection:
        connection: http.client.HTTPConnection | None = getattr(self._of_thread, "connection", None)
        if connection is None:
            https = self._address.scheme == "https"
            kind = http.client.HTTPSConnection if https else http.client.HTTPConnection
            connection = kind(str(self._address.hostname), self._address.port, timeout=self._timeout_s)
            self._of_thread.connection = connection
        return connection


def _fields(round_number: int | None, record: dict[str, Any]) -> dict[str, Any]:
    names = ("sample_id", "key", "source", "label", "entropy", "is_anchor", "has_image")
    return {"round": round_number, "class_name": record["class"], **{name: record[name] for name in names}}


def _neighbour(round_number: int | None, record: dict[str, Any]) -> Neighbour:
    return Neighbour(**_fields(round_number, record), similarity=record["similarity"])


def _detail(data: bytes) -> str:
    try:
        return str(json.loads(data)["detail"])
    except (ValueError, KeyError, TypeError):
        return data[:200].decode(errors="replace")
