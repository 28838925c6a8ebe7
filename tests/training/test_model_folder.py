"""A model read again gives the evaluation job's features; whatever is wrong with a folder is one line."""

import io
import json
import shutil
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

import andscale
from andscale.config import ModelConfig
from andscale.config_data import DataConfig
from andscale.data.augment import PIXEL_MEAN, PIXEL_STD, evaluation_boxes
from andscale.data.reader import SplitReader
from andscale.errors import AndscaleError, RunError, UsageError
from andscale.store.artifacts import Provenance, publish
from andscale.training.backbones import build_backbone, save_model
from andscale.training.model_folder import EvaluationTransform
from andscale.training.model_record import Crop
from tiny_runs import start_run

CONFIG = ModelConfig(backbone="small_resnet", feature_dim=16)


def _png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _publish(folder, seed, image_size=8, config=CONFIG):
    with publish(folder, kind="model", provenance=Provenance("hash")) as draft:
        network = build_backbone(config, seed, image_size)
        for name in save_model(draft.staging, network, config, image_size):
            draft.add(name)
    return network.eval()


@pytest.fixture(scope="module")
def run(tmp_path_factory, digits):
    """A run with models of rounds 0 and 1 (seeds 0 and 1), and a round 2 that has none yet."""
    layout = start_run(tmp_path_factory.mktemp("runs") / "a run", digits)
    for number in range(2):
        _publish(layout.round(number).model, number)
    layout.round(2).root.mkdir()
    return layout


@pytest.fixture
def folder(tmp_path, run):
    """A model's folder that may be damaged; with its manifest."""
    shutil.copytree(run.round(0).model, tmp_path / "model")
    return tmp_path / "model"


IMAGES = torch.randn(3, 3, 8, 8)


def _is_of_seed(network, seed):
    assert not network.training
    return torch.equal(network(IMAGES), build_backbone(CONFIG, seed).eval()(IMAGES))


def test_a_run_gives_its_newest_model_or_that_of_a_round(run):
    network, transform = andscale.load_model(run.root)
    assert _is_of_seed(network, 1)
    assert transform.image_size == 8
    assert _is_of_seed(andscale.load_model(str(run.root), round_number=0)[0], 0)


def test_a_round_a_model_and_a_copy_without_manifest_are_models_too(run, folder):
    assert _is_of_seed(andscale.load_model(run.round(1).root)[0], 1)
    assert _is_of_seed(andscale.load_model(run.round(1).model)[0], 1)
    (folder / "manifest.json").unlink()
    assert _is_of_seed(andscale.load_model(folder)[0], 0)


@pytest.mark.parametrize(("image_size", "in_memory_bytes"), [(8, 2**30), (6, 2**30), (8, 0)])
def test_features_are_those_of_the_evaluation_job(tmp_path, digits, image_size, in_memory_bytes):
    _publish(tmp_path / "model", 7, image_size)
    network, transform = andscale.load_model(tmp_path / "model")
    config = DataConfig(dataset=str(digits.root), image_size=image_size, in_memory_bytes=in_memory_bytes, num_workers=0)
    reader = SplitReader(digits, "val", config, torch.device("cpu"), 20)
    with tarfile.open(digits.root / "val-000000.tar") as tar:
        files = [tar.extractfile(member).read() for member in tar if member.name.endswith(".png")][:20]
    with torch.inference_mode():
        job = network(torch.cat(list(reader.in_order(7))))
        mine = network(torch.stack([transform(data) for data in files]))
    torch.testing.assert_close(mine, job, rtol=0, atol=1e-6)


def test_large_jpegs_are_fed_as_the_evaluation_job_feeds_them(tmp_path, rng):
    from andscale.data.prepare import PrepareOptions, prepare

    sizes = [(70, 90), (33, 300), (16, 16), (200, 150)]
    for number, size in enumerate(sizes):
        for split in ("train", "val"):
            folder = tmp_path / "raw" / split / "a"
            folder.mkdir(parents=True, exist_ok=True)
            noise = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(noise).resize((size[1], size[0])).save(folder / f"{number}.jpg", quality=90)
    dataset = prepare("image-folder", tmp_path / "raw", tmp_path / "prepared", PrepareOptions(10, 1))
    config = DataConfig(dataset=str(dataset.root), image_size=16)
    reader = SplitReader(dataset, "val", config, torch.device("cpu"))
    (fed,) = reader.in_order(10)
    transform = EvaluationTransform(16, PIXEL_MEAN, PIXEL_STD)
    files = sorted((tmp_path / "raw" / "val" / "a").iterdir())
    torch.testing.assert_close(torch.stack([transform(path) for path in files]), fed, rtol=0, atol=1e-6)


def test_every_form_of_an_image_gives_the_same(tmp_path, rng):
    transform = EvaluationTransform(16, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    pixels = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png")
    expected = transform(pixels)
    assert expected.shape == (3, 16, 16)
    assert expected.dtype == torch.float32
    pixels.setflags(write=False)
    for form in (
        pixels,
        image,
        image.convert("RGBA"),
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        (tmp_path / "a.png").read_bytes(),
        np.asfortranarray(pixels),
    ):
        assert torch.equal(transform(form), expected)
    gray = pixels[:, :, 0]
    assert torch.equal(transform(gray), transform(np.stack([gray] * 3, axis=2)))
    assert torch.equal(transform(Image.fromarray(gray)), transform(gray))


def test_the_record_says_what_the_crop_does(rng):
    pixels = np.zeros((64, 100, 3), np.uint8)
    side = round(64 * Crop().fraction)
    top, left = (64 - side) // 2, (100 - side) // 2
    np.testing.assert_array_equal(evaluation_boxes(np.array([64]), np.array([100]), 32), [[top, left, side, side]])
    pixels[top : top + side, left : left + side] = 255
    white = EvaluationTransform(32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))(pixels)
    torch.testing.assert_close(white, torch.ones(3, 32, 32))


@pytest.mark.parametrize(
    ("image", "error", "words"),
    [
        ("none.png", UsageError, "none.png cannot be read: No such file"),
        (b"no image", RunError, "an image cannot be decoded"),
        (_png(Image.new("RGB", (20, 20)))[:-20], RunError, "an image cannot be decoded"),
        (np.zeros((4, 4, 3), np.float32), UsageError, r"not float32 of shape \(4, 4, 3\)"),
        (np.zeros((3, 4, 4), np.uint8), UsageError, r"not uint8 of shape \(3, 4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), UsageError, r"not uint8 of shape \(0, 4, 3\)"),
        (Image.new("F", (4, 4)), UsageError, "mode F has no common range"),
        (7, UsageError, "not int"),
    ],
)
def test_what_is_no_image_is_named(image, error, words):
    with pytest.raises(error, match=words):
        EvaluationTransform(8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))(image)


def _edit(**values):
    def damage(folder):
        record = json.loads((folder / "config.json").read_text())
        for key, value in values.items():
            *sections, last = key.split("__")
            target = record
            for section in sections:
                target = target[section]
            target[last] = value
        (folder / "config.json").write_text(json.dumps(record))

    return damage


def _pickle(folder):
    torch.save({"a": torch.zeros(3)}, folder / "model.safetensors")


def _flip(folder):
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-5] ^= 1
    (folder / "model.safetensors").write_bytes(data)


# what is done to a folder, whether its manifest stays, and what is said
DAMAGES = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), False, "model.safetensors is missing"),
    "no record": (lambda f: (f / "config.json").unlink(), False, "config.json is missing"),
    "listed and missing": (lambda f: (f / "model.safetensors").unlink(), True, "model.safetensors is missing"),
    "flipped bit": (_flip, True, "does not have the hash of its record"),
    "cut": (lambda f: (f / "model.safetensors").write_bytes(b"\x10\0\0\0"), False, "not a safetensors file"),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), False, "not a safetensors file"),
    "pickle": (_pickle, False, "not a safetensors file"),
    "no json": (lambda f: (f / "config.json").write_text("{"), False, "config.json is no record .*no JSON"),
    "no object": (lambda f: (f / "config.json").write_text("[1]"), False, "config.json is no record"),
    "another format": (_edit(format="x"), False, "config.json is no record .*format"),
    "a later version": (_edit(format_version=2), False, "format_version.*or of another version"),
    "another crop": (_edit(crop__fraction=0.5), False, f"read it with andscale {andscale.__version__}"),
    "no deviation": (_edit(std=[0.2, 0.0, 0.2]), False, "std.1"),
    "nan": (_edit(mean=[0.2, float("nan"), 0.2]), False, "mean.1"),
    "a huge input": (_edit(image_size=10**9), False, "image_size"),
    "an unknown network": (_edit(model__backbone="resnet19"), False, "model.backbone"),
    "a network on a server": (_edit(model__backbone="timm:hf-hub:a/b"), False, "model.backbone"),
    "another network": (_edit(model__backbone="resnet18"), False, "does not fit the network"),
    "a huge D": (_edit(model__feature_dim=10**12), False, "model.feature_dim"),
    "another D": (_edit(model__feature_dim=8), False, "does not fit the network.*head.weight"),
    "manifest of another kind": (
        lambda f: (f / "manifest.json").write_text((f / "manifest.json").read_text().replace('"model"', '"memory"')),
        True,
        "holds 'memory', not 'model'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_one_line(folder, name):
    damage, keep_manifest, words = DAMAGES[name]
    if not keep_manifest:
        (folder / "manifest.json").unlink()
    damage(folder)
    with pytest.raises(AndscaleError, match=words) as caught:
        andscale.load_model(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("none",), "there is no folder none"),
        (("tests",), "tests is no run, round or model: tests/config.json is missing"),
        (("tests", 1), "tests is not a run .* no round 1"),
    ],
)
def test_what_is_no_model_is_named(repository, monkeypatch, arguments, words):
    monkeypatch.chdir(repository)
    with pytest.raises(UsageError, match=words):
        andscale.load_model(*arguments)


def test_a_run_without_the_model_says_which(run, tmp_path, digits):
    with pytest.raises(UsageError, match="round 2 has no model"):
        andscale.load_model(run.root, 2)
    with pytest.raises(UsageError, match="no round has a model yet"):
        andscale.load_model(start_run(tmp_path / "new", digits).root)


def test_a_damaged_model_of_a_run_is_not_passed_over(run, tmp_path):
    """An older round's instead would be another network than the one that was asked for."""
    shutil.copytree(run.root, tmp_path / "copy")
    _flip(tmp_path / "copy" / "rounds" / "01" / "model")
    with pytest.raises(RunError, match="rounds/01/model/model.safetensors does not have the hash"):
        andscale.load_model(tmp_path / "copy")


def test_a_network_of_timm_keeps_its_image_size(tmp_path):
    pytest.importorskip("timm")
    config = ModelConfig(backbone="timm:test_vit", feature_dim=16)
    network = _publish(tmp_path / "model", 0, 32, config)
    loaded, transform = andscale.load_model(tmp_path / "model")
    images = transform(_png(Image.new("RGB", (50, 40), (200, 10, 60))))[None]
    assert torch.equal(loaded(images), network(images))
