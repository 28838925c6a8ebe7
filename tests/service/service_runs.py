"""A tiny run to serve, a server in a thread, and an in-process client."""

import contextlib
import threading
import time

import uvicorn
from starlette.testclient import TestClient

from andscale.distributed import World
from andscale.orchestration.jobs import run_step
from andscale.orchestration.steps import Step
from andscale.service.guard import Limits
from andscale.service.serve import ServeRequest, build_app
from andscale.training.stopping import StopSignals
from tiny_runs import start_run

STEPS = (Step("train", 0), Step("index", 1), Step("train", 1), Step("index", 2))
QUICK = Limits(neighbours=60, queries=40, body_bytes=20_000, image_pixels=10_000, answers=1000)


def two_rounds(folder, digits):
    """143 digits, k = 3, two rounds with neighbourhoods; returns the run's layout."""
    layout = start_run(folder, digits, method={"num_rounds": 2, "num_neighbours": 3})
    for step in STEPS:
        run_step(layout.root, step, World(), StopSignals(), None)
    return layout


@contextlib.contextmanager
def client(place, limits=QUICK, look_s=3600, **request):
    """Calls the application without a network; ``.service`` is what it answers from."""
    app, _ = build_app(ServeRequest(place=place, **request), limits, look_s)
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as calling:
        calling.service = app.service
        yield calling


@contextlib.contextmanager
def server(place, limits=QUICK, look_s=3600, **request):
    """A real server on a free port; yields its URL and the application."""
    app, _ = build_app(ServeRequest(place=place, **request), limits, look_s)
    running = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = running.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}", app
    finally:
        running.should_exit = True
        thread.join(20)
