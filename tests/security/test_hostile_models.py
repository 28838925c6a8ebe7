"""Model folders and addresses of data sets that were made to harm."""

import contextlib
import json
import os
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from safetensors.numpy import save

import andscale
from andscale.config import ModelConfig
from andscale.data import remote
from andscale.data.shards import open_dataset
from andscale.errors import AndscaleError, RunError, UsageError
from andscale.training.backbones import WEIGHTS_NAME, build_backbone, save_model
from andscale.training.model_record import CONFIG_NAME


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    config = ModelConfig(backbone="small_resnet", feature_dim=16)
    save_model(folder, build_backbone(config, 0), config, 8)
    andscale.load_model(folder)
    return folder


def tensors_header(header, data=b""):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<Q", (1 << 63) - 1) + b"{}",
        struct.pack("<Q", 100 << 20) + b"{",
        tensors_header({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}),
        tensors_header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, bytes(4)),
        tensors_header({"a": {"dtype": "PICKLE", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
        tensors_header({"a": {"dtype": "F8_E8M0", "shape": [4], "data_offsets": [0, 4]}}, bytes(4)),
        tensors_header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, bytes(4)),
        save({"stem.weight": np.zeros((3, 3), np.float32)}),
    ],
    ids=["endless header", "long header", "terabytes", "negative", "pickle", "odd type", "short", "other sizes"],
)
def test_weights_that_lie_are_refused_by_name(model, data):
    (model / WEIGHTS_NAME).write_bytes(data)
    with pytest.raises(RunError, match=r"model\.safetensors") as error:
        andscale.load_model(model)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": 1 << 40}, {"model": {"backbone": "small_resnet", "feature_dim": 1 << 40}}, {"std": [0, 1, 1]},
        {"model": {"backbone": "../x"}}, {"model": {"backbone": "timm:hf-hub:a/b"}}, {"mean": [1e400, 0, 0]}, {"x": 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_config_that_asks_for_too_much_is_refused_by_name(model, change):
    record = json.loads((model / CONFIG_NAME).read_text())
    (model / CONFIG_NAME).write_text(json.dumps(record | change))
    with pytest.raises(RunError, match=r"config\.json"):
        andscale.load_model(model)


@pytest.mark.timeout(20)
def test_a_config_that_is_nested_without_end_or_no_plain_file_is_refused(model):
    (model / CONFIG_NAME).write_text("[" * 1_000_000)
    with pytest.raises(RunError, match=r"config\.json"):
        andscale.load_model(model)
    (model / CONFIG_NAME).unlink()
    os.mkfifo(model / CONFIG_NAME)
    with pytest.raises(AndscaleError, match=r"config\.json"):
        andscale.load_model(model)


@contextlib.contextmanager
def server_that_sends_to(location):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(302)
            self.send_header("Location", location)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("scheme", ["file://", "pipe:cat ", "ftp://127.0.0.1"])
def test_a_server_cannot_send_a_reader_to_a_file_of_this_machine(tmp_path, monkeypatch, scheme):
    monkeypatch.setattr(remote, "_PAUSE_S", 0.0)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    secret = tmp_path / "dataset.json"
    secret.write_text('{"format": "andscale.dataset", "format_version": 1}')
    with (
        server_that_sends_to(f"{scheme}{secret}") as url,
        pytest.raises(RunError, match=f"{url}/dataset.json (cannot be fetched|is not there)"),
    ):
        open_dataset(url)


@pytest.mark.parametrize(
    "url",
    ["file:///etc", "ftp://host/x", "pipe://id", "local://x", "data://x", "zip://a.zip", "github://a/b", "sftp://h/x"],
)
def test_other_schemes_are_refused_with_those_that_are_read(url):
    with pytest.raises(UsageError, match=r"is not a plain URL of a data set: http://, https://, s3://"):
        open_dataset(url)
