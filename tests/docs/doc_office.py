"""A folder with tiny data and runs under the names that the documentation uses, and somebody who types its commands."""

import contextlib
import io
import json
import os
import re
import subprocess
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import typer
import uvicorn
from doc_blocks import ROOT
from sklearn.datasets import load_digits

from andscale.cli import app, call
from andscale.config_file import load_config
from andscale.distributed import World
from andscale.orchestration import jobs, launch, local
from andscale.training.stopping import StopSignals
from synthetic_sources import cifar, encoded, write_idx, write_imagenet_tars

TINY = [
    "data.image_size=16", "data.max_train_samples=32", "data.max_val_samples=20", "model.backbone=small_resnet",
    "model.stem=small", "optim.num_epochs=1", "optim.global_batch_size=16", "optim.compile=false",
    "optim.precision=float32", "index.check_rows=20", "evaluation.linear_epochs=0", "resources.num_nodes=1",
    "resources.tasks_per_node=1", "resources.index_tasks_per_node=1", "resources.evaluate_tasks_per_node=1",
    "resources.gpus_per_node=0",
]  # fmt: skip
"""What a launch with --config is given besides, so that it takes a second."""
ADDRESS = "http://127.0.0.1:8765"
COMMANDS = typer.main.get_command(app).commands
DEMO = Path("runs/fashion_mnist_demo")


def make_office(folder):
    """Raw files, prepared Fashion-MNIST of 160 small digits, features; no run yet."""
    _copy_configs(folder)
    digits = load_digits()
    images = np.pad(np.kron(digits.images * 15, np.ones((3, 3))), ((0, 0), (2, 2), (2, 2))).astype(np.uint8)
    raw = folder / "raw"
    for prefix, rows in (("train", slice(0, 160)), ("t10k", slice(160, 200))):
        write_idx(raw / f"fashion-mnist/{prefix}-images-idx3-ubyte", images[rows])
        write_idx(raw / f"fashion-mnist/{prefix}-labels-idx1-ubyte", digits.target[rows].astype(np.uint8))
    (raw / "imagenet").mkdir()
    write_imagenet_tars(raw / "imagenet")
    cifar(raw / "cifar10", per_batch=8)
    for number in range(48):
        split = "train" if number < 36 else "val"
        path = raw / f"my-images/{split}/{('ant', 'bee')[number % 2]}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(seed=number))
    (folder / "photo.jpg").write_bytes(encoded(file_format="JPEG"))
    np.save(folder / "features.npy", digits.data[:200].astype(np.float32))
    np.save(folder / "labels.npy", digits.target[:200])


def _copy_configs(folder):
    (folder / "configs").mkdir()
    for path in (ROOT / "configs").glob("*.toml"):
        (folder / "configs" / path.name).write_bytes(path.read_bytes())
    (folder / "digits.toml").write_bytes((ROOT / "configs/digits_demo.toml").read_bytes())


@contextlib.contextmanager
def quick_jobs(monkeypatch):
    """Steps run in this process instead of in processes of their own; there is no Slurm; servers leave at once."""

    def run_here(layout, steps, config):
        for step in steps:
            jobs.run_step(layout.root, step, World(), StopSignals(), config)

    monkeypatch.setattr(local, "run_steps", run_here)
    monkeypatch.setattr(launch, "choose_cluster", lambda asked: "local")
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets=None: None)
    yield


def command_of(words):
    """(command, arguments, environment) of what is typed; the command is None where it is not andscale's."""
    environment = {}
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        name, _, value = words[0].partition("=")
        environment[name] = value
        words = words[1:]
    if words[0] == ".venv/bin/torchrun":
        words = ["python", *words[words.index("--") + 1 :]]
    if words[0].rpartition("/")[2] == "andscale":
        return words[1], words[2:], environment
    if words[0] == "python" and re.fullmatch(r"(jobs|tools)/\w+\.py", words[1]):
        door = re.search(r'open_door\("(\w+)"\)', (ROOT / words[1]).read_text())
        return door[1], words[2:], environment
    return None, words, environment


def parse(name, arguments):
    """Let the real command line look at what is typed, without doing it; its config and settings are read."""
    if name.startswith("--"):
        assert call(None, [name]) == 0, name
        return
    context = COMMANDS[name].make_context(name, list(arguments))
    config, overrides = context.params.get("config"), context.params.get("overrides")
    if config is not None:
        load_config(Path(config), list(overrides or []))


def type_it(words, monkeypatch):
    """Do what a command says; asserts that it ends well. Returns what it printed."""
    name, arguments, environment = command_of(words)
    if name is None:
        assert words[0] in _OTHERS, f"nothing here runs {words[0]}: add a way, or a reason to FOREIGN"
        return _OTHERS[words[0]](words)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    if DEMO.exists():
        os.utime(DEMO / "run.json")  # the newest run, which is meant where none is named
    if name == "launch" and "--config" in arguments:
        arguments = [*arguments, *(word for setting in TINY for word in ("--set", setting))]
    if name == "prepare" and "--verify" not in arguments:
        arguments = [*arguments, "--workers", "1"]
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        code = call(name, arguments)
    assert code == 0, f"{' '.join(words)}: {errors.getvalue()[-800:]}"
    return out.getvalue()


def _make(words):
    """``make -n`` reads the Makefile and does nothing; what is set on the command line must be read somewhere."""
    answer = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, f"{' '.join(words)}: {answer.stderr}"
    readers = (ROOT / "Makefile").read_text() + "".join(path.read_text() for path in (ROOT / "tools").glob("*.sh"))
    for word in words[2:]:
        variable = word.partition("=")[0]
        assert f"$({variable})" in readers or f"${{{variable}:" in readers or f",{variable})" in readers, word
    return answer.stdout


def _curl(words):
    """As far as the documentation uses it."""
    url, body, headers = None, None, {}
    rest = iter(words[1:])
    for word in rest:
        match word:
            case "--data-binary":
                body = Path(next(rest).removeprefix("@")).read_bytes()
            case "-H":
                name, _, value = next(rest).partition(": ")
                headers[name] = value
            case _:
                assert word.startswith("http"), word
                url = word
    with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=20) as answer:
        text = answer.read().decode()
    assert json.loads(text)
    return text


_OTHERS = {"make": _make, "curl": _curl}


@contextlib.contextmanager
def served(place):
    """The service on a free port; yields its address."""
    from andscale.service.guard import Limits
    from andscale.service.serve import ServeRequest, build_app

    api, _ = build_app(ServeRequest(place=place), Limits())
    server = uvicorn.Server(uvicorn.Config(api, port=0, log_level="error"))
    thread = threading.Thread(target=_REAL_RUN, args=(server,), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)


_REAL_RUN = uvicorn.Server.run
