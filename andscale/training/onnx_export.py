"""A trained network as an ONNX file that is compared with torch before anybody sees it."""

import json
import secrets
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from andscale.errors import RunError, UsageError
from andscale.store.files import check_writable, fsync_path
from andscale.training.embedding import EmbeddingNetwork
from andscale.training.model_folder import open_model
from andscale.training.model_record import ModelRecord

_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_INPUT, _OUTPUT = "images", "features"
_CHECKED_BATCHES = (1, 3)
_TOLERANCE = 1e-4
_MOST_BYTES = 2**31


def export_onnx(run_or_folder: Path, out: Path, round_number: int | None = None) -> float:
    """Write a network as ONNX: input ``images`` (B, 3, S, S) float32, normalised; output ``features`` (B, D), unit
    length; B is free. The file's metadata holds ``config.json``'s values: mean, std, crop, image_size.

    Args:
        run_or_folder: as for ``load_model``.
        out: the file to write; must not exist.
        round_number: of a run; None is the newest.

    Returns:
        The largest difference between a feature's component from onnxruntime and torch's, on random images.

    Raises:
        UsageError: no model, ``out`` exists, packages are missing. RunError: damaged, or torch and ONNX differ.
    """
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise UsageError(f"ONNX export needs {', '.join(missing)}: install with 'pip install andscale[export]'")
    if out.exists():
        raise UsageError(f"{out} exists: remove it, or choose another name")
    check_writable(out.parent)
    network, record = open_model(run_or_folder, round_number)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.tmp-{secrets.token_hex(8)}")
    try:
        _write(network, record, temporary)
        difference = _compare(network, record.image_size, temporary)
        fsync_path(temporary)
        temporary.rename(out)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_path(out.parent)
    return difference


def _write(network: EmbeddingNetwork, record: ModelRecord, path: Path) -> None:
    import onnx

    size = record.image_size
    try:
        program = torch.onnx.export(
            network,
            (torch.zeros(2, 3, size, size),),
            input_names=[_INPUT],
            output_names=[_OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            dynamo=True,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise RunError(f"torch cannot export {record.model.backbone} to ONNX: {reason}") from None
    assert program is not None
    model = program.model_proto
    values = record.model_dump(mode="json")
    for key in ("andscale", "model", "image_size", "mean", "std", "crop"):
        value = values[key]
        model.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    if model.ByteSize() >= _MOST_BYTES:
        raise RunError(f"{record.model.backbone} has {model.ByteSize():,} bytes, an ONNX file holds {_MOST_BYTES:,}")
    onnx.save(model, path)


def _compare(network: EmbeddingNetwork, size: int, path: Path) -> float:
    """Largest difference of a component over several batch sizes; RunError when it is more than 1e-4.

    For unit vectors 1 - cosine is half the squared difference: below D 5e-9 then.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    worst = 0.0
    for batch_size in _CHECKED_BATCHES:
        images = np.random.default_rng(batch_size).standard_normal((batch_size, 3, size, size), dtype=np.float32)
        with torch.inference_mode():
            expected = network(torch.from_numpy(images)).numpy()
        (features,) = session.run([_OUTPUT], {_INPUT: images})
        if features.shape != expected.shape:
            raise RunError(f"onnxruntime gives features of shape {features.shape}, torch {expected.shape}")
        worst = max(worst, float(np.abs(features - expected).max()))
    if not worst <= _TOLERANCE:
        raise RunError(f"the exported network differs from torch's by {worst:.2e} a component: nothing was written")
    return worst
