"""What onnxruntime gives is what torch gives, and nothing that differs is ever left."""

import json

import numpy as np
import pytest
import torch

from andscale.config import ModelConfig
from andscale.errors import RunError, UsageError
from andscale.training import onnx_export
from andscale.training.backbones import build_backbone, save_model
from andscale.training.onnx_export import export_onnx

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def _model(folder, backbone, size, stem="small"):
    """A model's folder; its batch norms have seen images, as after training."""
    config = ModelConfig(backbone=backbone, stem=stem, feature_dim=16)
    network = build_backbone(config, 0, size).train()
    for _ in range(3):
        network(torch.randn(4, 3, size, size))
    folder.mkdir()
    save_model(folder, network, config, size)
    return network.eval()


@pytest.mark.parametrize(
    ("backbone", "size"), [("small_resnet", 8), ("alexnet", 17), ("resnet18", 9), ("timm:test_resnet", 32)]
)
def test_onnxruntime_gives_torchs_features_for_any_batch(tmp_path, backbone, size):
    if backbone.startswith("timm:"):
        pytest.importorskip("timm")
    network = _model(tmp_path / "model", backbone, size)
    out = tmp_path / "new" / "network.onnx"
    assert export_onnx(tmp_path / "model", out) <= 1e-4
    assert [path.name for path in out.parent.iterdir()] == ["network.onnx"]
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    images = torch.randn(5, 3, size, size)
    (features,) = session.run(["features"], {"images": images.numpy()})
    np.testing.assert_allclose(features, network(images).detach().numpy(), atol=1e-5)
    metadata = session.get_modelmeta().custom_metadata_map
    record = json.loads((tmp_path / "model" / "config.json").read_text())
    for key in ("mean", "std", "crop", "image_size", "model"):
        assert json.loads(metadata[key]) == record[key]


def test_an_export_that_differs_leaves_nothing(tmp_path, monkeypatch):
    _model(tmp_path / "model", "small_resnet", 8)
    export, other = torch.onnx.export, build_backbone(ModelConfig(backbone="small_resnet", feature_dim=16), 1).eval()
    monkeypatch.setattr(torch.onnx, "export", lambda network, *rest, **options: export(other, *rest, **options))
    with pytest.raises(RunError, match="differs from torch's by .* nothing was written"):
        export_onnx(tmp_path / "model", tmp_path / "out" / "network.onnx")
    assert list((tmp_path / "out").iterdir()) == []


def test_mistakes_are_told_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "there.onnx").write_text("mine")
    with pytest.raises(UsageError, match=r"there.onnx exists: remove it"):
        export_onnx(tmp_path, tmp_path / "there.onnx")
    assert (tmp_path / "there.onnx").read_text() == "mine"
    with pytest.raises(UsageError, match="is no run, round or model"):
        export_onnx(tmp_path, tmp_path / "new.onnx")
    with pytest.raises(UsageError, match="cannot write in /proc"):
        export_onnx(tmp_path, tmp_path.__class__("/proc/new.onnx"))
    monkeypatch.setattr(onnx_export, "_PACKAGES", ("onnx", "not_there"))
    with pytest.raises(UsageError, match=r"needs not_there: install with 'pip install andscale\[export\]'"):
        export_onnx(tmp_path, tmp_path / "new.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["there.onnx"]
