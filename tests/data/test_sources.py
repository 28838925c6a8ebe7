"""Raw data sets in their original layouts become (bytes, label) pairs; damaged and hostile ones are refused by name."""

import io
import os
import pickle
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

import synthetic_sources as synthetic
from andscale.data import downloads
from andscale.data.sources import SOURCES, RawDataset, open_source
from andscale.errors import RunError, UsageError


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def assert_split_is(split, images, labels):
    assert len(split) == len(images)
    assert split.labels.dtype == np.int32
    assert split.labels.tolist() == list(labels)
    for i, image in enumerate(images):
        np.testing.assert_array_equal(pixels(split.read(i)), image)


@pytest.mark.parametrize("below", ["", "anything", "FashionMNIST/raw"])
@pytest.mark.parametrize("compressed", [False, True])
def test_fashion_mnist_is_read_from_idx_files(tmp_path, below, compressed):
    content = synthetic.fashion_mnist(tmp_path / below, compressed=compressed)
    raw = open_source("fashion-mnist", tmp_path)
    assert_split_is(raw.splits["train"], *content["train"])
    assert_split_is(raw.splits["val"], *content["t10k"])
    assert raw.splits["val"].describe(3) == "t10k-images-idx3-ubyte#3"
    assert raw.classes[9] == "Ankle boot"
    assert str(tmp_path) in raw.obtained_from


def damage_magic(path):
    path.write_bytes(b"\0\0\x0d" + path.read_bytes()[3:])


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [damage_magic, truncate, empty])
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_damaged_idx_files_are_named(tmp_path, damage, name):
    synthetic.fashion_mnist(tmp_path)
    damage(tmp_path / name)
    with pytest.raises(RunError, match=name):
        open_source("fashion-mnist", tmp_path)


def test_cut_gzip_of_idx_is_named(tmp_path):
    synthetic.fashion_mnist(tmp_path, compressed=True)
    truncate(tmp_path / "train-images-idx3-ubyte.gz")
    with pytest.raises(RunError, match=r"train-images-idx3-ubyte.gz.*unpack"):
        open_source("fashion-mnist", tmp_path)


def test_idx_files_of_different_counts_are_refused(tmp_path):
    synthetic.fashion_mnist(tmp_path)
    synthetic.write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(11, np.uint8))
    with pytest.raises(RunError, match=r"train-labels-idx1-ubyte has 11 labels.*has 12 images"):
        open_source("fashion-mnist", tmp_path)


def test_labels_outside_the_classes_are_refused(tmp_path):
    synthetic.fashion_mnist(tmp_path)
    synthetic.write_idx(tmp_path / "train-labels-idx1-ubyte", np.full(12, 10, np.uint8))
    with pytest.raises(RunError, match=r"train-images-idx3-ubyte#0.*label 10"):
        open_source("fashion-mnist", tmp_path)


def test_a_download_that_is_not_the_whole_of_fashion_mnist_is_refused(tmp_path, monkeypatch):
    synthetic.fashion_mnist(tmp_path)
    monkeypatch.setattr(downloads, "INSTALLED_FOLDER", tmp_path)
    with pytest.raises(RunError, match="12 and 5 images"):
        open_source("fashion-mnist", None)


def test_digits_are_scaled_exactly():
    raw = open_source("digits", None)
    assert (len(raw.splits["train"]), len(raw.splits["val"])) == (1437, 360)
    from sklearn.datasets import load_digits

    images = load_digits().images
    np.testing.assert_array_equal(pixels(raw.splits["train"].read(5)), images[5] * 15)
    np.testing.assert_array_equal(pixels(raw.splits["val"].read(0)), images[1437] * 15)
    assert raw.splits["val"].describe(0) == "digits#1437"
    assert raw.splits["val"].labels[-1] == load_digits().target[-1]


@pytest.mark.parametrize(("source", "module"), [("digits", "sklearn.datasets"), ("svhn", "scipy.io")])
def test_a_missing_extra_is_named(tmp_path, monkeypatch, source, module):
    synthetic.svhn(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=r"andscale\[sources\]"):
        open_source(source, tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_read_from_its_pickles(tmp_path, name):
    content = synthetic.cifar(tmp_path, name)
    raw = open_source(name, tmp_path)
    assert_split_is(raw.splits["train"], *content["train"])
    assert_split_is(raw.splits["val"], *content["val"])
    assert raw.classes[3] == "class 3"
    if name == "cifar10":
        assert raw.splits["train"].describe(4) == "cifar-10-batches-py/data_batch_2#1"
    else:
        assert raw.splits["train"].describe(2) == "cifar-100-python/train#2"


def test_synthetic_cifar_files_are_what_pickle_itself_reads(tmp_path):
    """The test's own writer of Python 2's pickles is held against Python's reader."""
    content = synthetic.cifar(tmp_path)
    data = (tmp_path / "cifar-10-batches-py" / "test_batch").read_bytes()
    batch = pickle.loads(data, encoding="latin1")
    np.testing.assert_array_equal(batch["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), content["val"][0])
    assert batch["labels"] == content["val"][1]


def test_cifar_written_by_python_3_and_its_archive_are_read(tmp_path):
    content = synthetic.cifar(tmp_path / "files")
    base = tmp_path / "files" / "cifar-10-batches-py"
    for path in base.glob("*_batch*"):
        path.write_bytes(pickle.dumps(pickle.loads(path.read_bytes(), encoding="latin1"), protocol=2))
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as tar:
        tar.add(base, "cifar-10-batches-py")
    raw = open_source("cifar10", tmp_path)
    assert_split_is(raw.splits["train"], *content["train"])
    assert raw.identity == open_source("cifar10", tmp_path / "files").identity
    assert not (tmp_path / "cifar-10-batches-py").exists()


class Bomb:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("function", [os.system, eval, exec, getattr, np.load, __import__])
def test_a_pickle_bomb_is_refused_unexecuted(tmp_path, function, protocol):
    synthetic.cifar(tmp_path)
    witness = tmp_path / "executed"
    bomb = {"data": Bomb(function, f"touch {witness}"), "labels": []}
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(pickle.dumps(bomb, protocol=protocol))
    with pytest.raises(RunError, match=r"data_batch_3 is refused: its pickle asks for"):
        open_source("cifar10", tmp_path)
    assert not witness.exists()


@pytest.mark.parametrize("data", [b"", b"\x80\x02}", pickle.dumps([1]), pickle.dumps({"labels": []})])
def test_damaged_cifar_files_are_named(tmp_path, data):
    synthetic.cifar(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(data)
    with pytest.raises(RunError, match="test_batch"):
        open_source("cifar10", tmp_path)


@pytest.mark.parametrize("dtype", [object, np.int8, np.uint16])
def test_an_array_of_another_type_in_a_cifar_file_is_refused(tmp_path, dtype):
    synthetic.cifar(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(pickle.dumps({"data": np.zeros((1, 3072), dtype), "labels": [0]}, protocol=2))
    with pytest.raises(RunError, match=r"test_batch is damaged: its data are not an array of unsigned bytes"):
        open_source("cifar10", tmp_path)


def test_svhn_label_ten_means_zero(tmp_path):
    content = synthetic.svhn(tmp_path)
    raw = open_source("svhn", tmp_path)
    assert_split_is(raw.splits["train"], *content["train"])
    assert_split_is(raw.splits["val"], *content["val"])
    assert raw.splits["train"].labels[0] == 0
    assert raw.splits["val"].describe(2) == "test_32x32.mat#2"


def test_damaged_svhn_file_is_named(tmp_path):
    synthetic.svhn(tmp_path)
    (tmp_path / "test_32x32.mat").write_bytes(b"nothing")
    with pytest.raises(RunError, match=r"test_32x32\.mat"):
        open_source("svhn", tmp_path)


@pytest.mark.parametrize("source", ["cifar10", "cifar100", "svhn"])
def test_a_folder_without_the_source_is_refused(tmp_path, source):
    with pytest.raises(UsageError, match=str(tmp_path)):
        open_source(source, tmp_path)


def test_image_folder_hands_out_files_unchanged_sorted_by_class_and_name(tmp_path):
    content = synthetic.image_folder(tmp_path)
    (tmp_path / "train" / ".DS_Store").write_bytes(b"")
    (tmp_path / "train" / "ant" / "._001a.jpg").write_bytes(b"")
    raw = open_source("image-folder", tmp_path)
    assert raw.classes == ("ant", "bee")
    for split in ("train", "val"):
        names = [raw.splits[split].describe(i) for i in range(len(raw.splits[split]))]
        assert names == sorted(n for n in content if n.startswith(split))
        assert [raw.splits[split].read(i) for i in range(len(names))] == [content[n] for n in names]
        assert raw.splits[split].labels.tolist() == [int("/bee/" in n) for n in names]


def test_flat_folder_is_training_data_without_labels(tmp_path):
    for name in ("b.png", "a.png"):
        (tmp_path / name).write_bytes(synthetic.encoded())
    raw = open_source("image-folder", tmp_path)
    assert raw.classes == ()
    assert raw.splits["train"].labels.tolist() == [-1, -1]
    assert [raw.splits["train"].describe(i) for i in range(2)] == ["a.png", "b.png"]
    assert len(raw.splits["val"]) == 0


def make(root, *files):
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"x")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["train/ant/1.png", "val/wasp/1.png"], "wasp"),
        (["train/ant/1.png", "train/stray.txt"], r"stray\.txt"),
        (["train/ant/1.png", "val/1.png"], r"1\.png"),
        (["train/ant/images/1.png"], "images"),
        (["train/ant/.hidden"], "no images"),
        (["train/.hidden"], "no class folders"),
        (["ant/1.png", "bee/1.png"], "ant"),
        ([".hidden"], "no images"),
    ],
)
def test_folders_of_another_layout_are_refused(tmp_path, files, message):
    make(tmp_path, *files)
    with pytest.raises(UsageError, match=message):
        open_source("image-folder", tmp_path)


def test_a_broken_link_is_refused_and_a_good_one_followed(tmp_path):
    make(tmp_path / "there", "1.png")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "1.png").symlink_to(tmp_path / "there" / "1.png")
    assert open_source("image-folder", tmp_path / "links").splits["train"].read(0) == b"x"
    (tmp_path / "there" / "1.png").unlink()
    with pytest.raises(UsageError, match="broken link"):
        open_source("image-folder", tmp_path / "links")


def test_identity_follows_the_content_and_not_the_place(tmp_path):
    for place in ("one", "two"):
        synthetic.image_folder(tmp_path / place)
        synthetic.fashion_mnist(tmp_path / place / "idx", compressed=place == "two")
    identities = [open_source("image-folder", tmp_path / place).identity for place in ("one", "two")]
    assert identities[0] == identities[1]
    changed = tmp_path / "two" / "train" / "ant" / "000a.jpg"
    changed.write_bytes(changed.read_bytes() + b"x")
    assert open_source("image-folder", tmp_path / "two").identity != identities[0]
    arrays = [open_source("fashion-mnist", tmp_path / place / "idx").identity for place in ("one", "two")]
    assert arrays[0] == arrays[1]
    synthetic.write_idx(tmp_path / "one" / "idx" / "t10k-labels-idx1-ubyte", np.zeros(5, np.uint8))
    assert open_source("fashion-mnist", tmp_path / "one" / "idx").identity != arrays[0]


def test_every_source_survives_pickling(tmp_path):
    synthetic.image_folder(tmp_path / "images")
    synthetic.svhn(tmp_path / "svhn")
    for raw in (open_source("image-folder", tmp_path / "images"), open_source("svhn", tmp_path / "svhn")):
        copy = pickle.loads(pickle.dumps(raw))
        assert isinstance(copy, RawDataset)
        assert copy.splits["train"].read(1) == raw.splits["train"].read(1)


def test_unknown_source_and_missing_folder_are_answered_with_what_is_right(tmp_path):
    with pytest.raises(UsageError, match=", ".join(SOURCES)):
        open_source("imagenette", None)
    with pytest.raises(UsageError, match="not a folder"):
        open_source("image-folder", tmp_path / "absent")
    with pytest.raises(UsageError, match="needs a folder"):
        open_source("image-folder", None)


def test_importing_the_sources_loads_nothing_heavy():
    code = (
        "import sys; import andscale.data.sources, andscale.data.prepare;"
        "heavy = {'torch', 'torchvision', 'webdataset', 'pyarrow', 'sklearn', 'scipy', 'PIL'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
