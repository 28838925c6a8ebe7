"""A folder on a local HTTP server that can be made to fail."""

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Served:
    url: str
    requests: Counter[str] = field(default_factory=Counter)
    """Name -> GETs of it."""
    failing: dict[str, list[str]] = field(default_factory=dict)
    """Name -> what happens to its next GETs: "500", "cut", "short", "changed"; afterwards they succeed."""


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[Served]:
    served = Served("")

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, *, body):
            name = self.path.removeprefix("/sets/digits/")
            path = folder / name
            if body:
                served.requests[name] += 1
            fault = served.failing.get(name, [])
            kind = fault.pop(0) if body and fault else ""
            if kind == "500" or not path.is_file():
                self.send_error(500 if kind else 404)
                return
            data = path.read_bytes()
            if kind == "changed":
                data = data[:-600] + bytes([data[-600] ^ 1]) + data[-599:]
            if kind == "short":  # as if it were whole
                data = data[: len(data) // 2]
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data[: len(data) // 2] if kind == "cut" else data)
            if kind == "cut":
                self.close_connection = True

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_address[1]}/sets/digits"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
