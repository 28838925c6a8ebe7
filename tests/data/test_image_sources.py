"""ImageNet, CUB-200-2011 and Stanford Dogs in their original layouts: the same samples from archives and folders."""

import importlib.util
import io
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

import synthetic_sources as synthetic
from andscale.data import published
from andscale.data.prepare import PrepareOptions, prepare
from andscale.data.published import PUBLISHED, Published
from andscale.data.shard_stream import stream_samples
from andscale.data.shards import load_catalogue
from andscale.data.sources import open_source
from andscale.errors import RunError, UsageError

TRAIN, VAL, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tars")
    return folder, synthetic.write_imagenet_tars(folder, 4, 3, 2)


@pytest.fixture
def own_tars(tars, tmp_path):
    """A copy to be damaged."""
    folder = tmp_path / "tars"
    folder.mkdir()
    for path in tars[0].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def samples(split):
    return [(split.read(i), int(split.labels[i])) for i in range(len(split))]


def described(split):
    return [split.describe(i) for i in range(len(split))]


def test_imagenet_is_read_from_the_tars_in_place(tars):
    folder, content = tars
    before = sorted(folder.iterdir())
    raw = open_source("imagenet", folder)
    for split in ("train", "val"):
        assert samples(raw.splits[split]) == content[split]
        assert raw.splits[split].labels.dtype == np.int32
    assert raw.classes == tuple(f"{w} word {c}, other word" for c, w in enumerate(sorted(synthetic.WNIDS[:4])))
    assert described(raw.splits["train"])[0] == "train/n01440764/n01440764_17.JPEG"
    assert described(raw.splits["val"])[1] == "val/ILSVRC2012_val_00000002.JPEG"
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("below", ["ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "."])
def test_imagenet_folders_are_the_same_data_set_as_the_tars(tars, tmp_path, below):
    synthetic.write_imagenet_folders(tmp_path, 4, 3, 2, below)
    folders, archives = open_source("imagenet", tmp_path), open_source("imagenet", tars[0])
    assert folders.identity == archives.identity
    assert folders.classes == archives.classes
    for split in ("train", "val"):
        assert samples(folders.splits[split]) == samples(archives.splits[split])
        assert described(folders.splits[split]) == described(archives.splits[split])


def test_imagenet_prepared_by_several_processes_keeps_every_byte(tars, tmp_path):
    folder, content = tars
    options = PrepareOptions(samples_per_shard=5, num_workers=2)
    dataset = prepare("imagenet", folder, tmp_path / "out", options)
    for split in ("train", "val"):
        assert [(data, label) for _, data, label in stream_samples(dataset, split)] == content[split]
    suffixes = [name.rpartition(".")[2] for name in member_names(tmp_path / "out" / "train-000000.tar")]
    assert suffixes[:4] == ["png", "cls", "jpg", "cls"]
    synthetic.write_imagenet_folders(tmp_path / "folders", 4, 3, 2)
    assert (
        prepare("imagenet", tmp_path / "folders", tmp_path / "out 2", PrepareOptions(5, 1)).fingerprint
        == dataset.fingerprint
    )


def member_names(path):
    with tarfile.open(path) as tar:
        return tar.getnames()


def test_a_split_may_be_a_tar_and_the_other_one_a_folder(own_tars, tars):
    with tarfile.open(own_tars / VAL) as members:
        files = {f"val/{m.name}": members.extractfile(m).read() for m in members.getmembers()}
    (own_tars / VAL).unlink()
    synthetic.write_files(own_tars, files)
    assert open_source("imagenet", own_tars).identity == open_source("imagenet", tars[0]).identity


def test_splits_in_archives_survive_pickling_in_parts(tars):
    split = open_source("imagenet", tars[0]).splits["train"]
    part = pickle.loads(pickle.dumps(split.take(np.array([5, 2]))))
    assert samples(part) == [samples(split)[5], samples(split)[2]]
    assert described(part) == [described(split)[5], described(split)[2]]
    assert len(pickle.dumps(split.take(np.array([5])))) < 1000  # places, not bytes


@pytest.mark.parametrize(("name", "message"), [(TRAIN, "img_train.tar"), (VAL, "img_val.tar"), (DEVKIT, "devkit")])
def test_a_missing_piece_of_imagenet_is_named(own_tars, name, message):
    (own_tars / name).unlink()
    with pytest.raises(UsageError, match=message):
        open_source("imagenet", own_tars)


@pytest.mark.parametrize("has_devkit", [True, False])
@pytest.mark.parametrize("below", ["ILSVRC/Data/CLS-LOC", "."])
def test_class_folders_in_val_lead_to_the_source_that_reads_them(tmp_path, below, has_devkit):
    synthetic.write_imagenet_folders(tmp_path, 4, 3, 2, below)
    if not has_devkit:
        shutil.rmtree(tmp_path / "ILSVRC2012_devkit_t12")
    val = tmp_path / below / "val"
    for number, image in enumerate(sorted(val.iterdir())):
        (val / synthetic.WNIDS[number % 4]).mkdir(exist_ok=True)
        image.rename(val / synthetic.WNIDS[number % 4] / image.name)
    with pytest.raises(UsageError) as error:
        open_source("imagenet", tmp_path)
    assert str(error.value).endswith(f"prepare this layout with tools/prepare_shards.py image-folder {val.parent} OUT")
    raw = open_source("image-folder", val.parent)
    assert (len(raw.classes), len(raw.splits["train"]), len(raw.splits["val"])) == (4, 12, 8)


@pytest.mark.parametrize("name", [TRAIN, VAL])
@pytest.mark.parametrize("kept", [0, 700, 0.5, -11_000, -9_000])
def test_a_cut_archive_is_named(own_tars, name, kept):
    data = (own_tars / name).read_bytes()
    cut = int(kept * len(data)) if isinstance(kept, float) else kept
    # tars end with blocks of zeros up to a multiple of 10,240 bytes: cut those off first
    (own_tars / name).write_bytes(data.rstrip(b"\0")[:cut] if cut != -9_000 else data.rstrip(b"\0"))
    with pytest.raises(RunError, match=name):
        open_source("imagenet", own_tars)


def test_a_damaged_header_within_an_archive_is_not_taken_for_its_end(own_tars):
    data = bytearray((own_tars / VAL).read_bytes())
    data[data.index(b"ILSVRC2012_val_00000003")] ^= 1
    (own_tars / VAL).write_bytes(data)
    with pytest.raises(RunError, match=rf"{VAL} is not a whole tar archive: it is damaged or cut at byte \d+"):
        open_source("imagenet", own_tars)


def link(name, kind=tarfile.SYMTYPE, to="/etc/passwd"):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, to
    return member


def add(path, *members):
    with tarfile.open(path, "a") as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(bytes(member.size)))


def plain(name, size=3):
    member = tarfile.TarInfo(name)
    member.size = size
    return member


HOSTILE = [
    (link("ILSVRC2012_val_00000009.JPEG"), "not a plain file"),
    (link("ILSVRC2012_val_00000009.JPEG", tarfile.LNKTYPE, "ILSVRC2012_val_00000001.JPEG"), "not a plain file"),
    (link("ILSVRC2012_val_00000009.JPEG", tarfile.CHRTYPE), "not a plain file"),
    (link("ILSVRC2012_val_00000009.JPEG", tarfile.FIFOTYPE), "not a plain file"),
    (plain("../ILSVRC2012_val_00000009.JPEG"), "leads outside"),
    (plain("/ILSVRC2012_val_00000009.JPEG"), "leads outside"),
    (plain("a/../../x"), "leads outside"),
    (plain("ILSVRC2012_val_00000001.JPEG"), "there twice"),
    (plain("./ILSVRC2012_val_00000001.JPEG"), "there twice"),
    (plain("sub/ILSVRC2012_val_00000001.JPEG"), "names like"),
    (plain("ILSVRC2012_val_00000009.JPEG"), "has no label"),
    (plain("ILSVRC2012_val_00000000.JPEG"), "has no label"),
    (plain("notes.txt"), "names like"),
]


@pytest.mark.parametrize(("member", "message"), HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_member_is_refused_by_name(own_tars, member, message):
    add(own_tars / VAL, member)
    with pytest.raises(RunError, match=message) as error:
        open_source("imagenet", own_tars)
    assert VAL in str(error.value)
    assert member.name.removeprefix("./") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (plain("readme.txt"), r"readme.txt"),
        (plain("n99999999.tar", 100), "n99999999.tar is not a whole tar archive"),
        (link("n99999999.tar", to="/dev/zero"), "not a plain file"),
    ],
)
def test_what_is_no_archive_of_a_class_is_refused(own_tars, member, message):
    add(own_tars / TRAIN, member)
    with pytest.raises(RunError, match=message):
        open_source("imagenet", own_tars)


def test_a_class_archive_cannot_reach_beyond_its_own_bytes(tmp_path, own_tars):
    inner = plain("n01440764_1.JPEG", 5_000_000)
    data = inner.tobuf(tarfile.GNU_FORMAT)
    synthetic.write_tar(own_tars / TRAIN, {"n01440764.tar": data, "n01443537.tar": bytes(6_000_000)})
    with pytest.raises(RunError, match=r"n01440764.tar is refused .*the archive ends within it"):
        open_source("imagenet", own_tars)


def test_a_class_that_the_devkit_does_not_have_is_named(tmp_path):
    synthetic.write_imagenet_folders(tmp_path, 2, 1, 1, ".")
    synthetic.write_files(tmp_path, {"train/n09999999/n09999999_1.JPEG": b"x"})
    with pytest.raises(RunError, match="n09999999"):
        open_source("imagenet", tmp_path)


@pytest.mark.parametrize("stray", ["train/n01440764/readme.txt", "train/n01440764/n02105855_1.JPEG", "val/x.JPEG"])
def test_strays_among_imagenets_files_are_named(tmp_path, stray):
    synthetic.write_imagenet_folders(tmp_path, 2, 1, 1, ".")
    synthetic.write_files(tmp_path, {stray: b"x"})
    with pytest.raises(RunError, match=stray):
        open_source("imagenet", tmp_path)


def test_sorted_validation_folders_are_sent_to_the_source_that_reads_them(tmp_path):
    synthetic.write_imagenet_folders(tmp_path, 2, 1, 1, ".")
    (tmp_path / "val" / "n01440764").mkdir()
    with pytest.raises(UsageError, match="image-folder"):
        open_source("imagenet", tmp_path)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("data/meta.mat", b"nothing", "meta.mat is not a .mat file of imagenet"),
        ("data/meta.mat", None, "meta.mat is missing"),
        ("data/ILSVRC2012_validation_ground_truth.txt", b"1\n3\n", "ground_truth.txt is damaged: 3 is no"),
        ("data/ILSVRC2012_validation_ground_truth.txt", b"1\nx\n", "ground_truth.txt is damaged"),
        ("data/ILSVRC2012_validation_ground_truth.txt", b"1\n", "has no label"),
    ],
)
def test_a_damaged_devkit_is_named(tmp_path, name, data, message):
    synthetic.write_imagenet_folders(tmp_path, 2, 1, 1, ".")
    path = tmp_path / "ILSVRC2012_devkit_t12" / name
    path.unlink() if data is None else path.write_bytes(data)
    with pytest.raises(RunError, match=message):
        open_source("imagenet", tmp_path)


def test_synsets_that_lack_fields_are_named(tmp_path):
    from scipy.io import savemat

    synthetic.write_imagenet_folders(tmp_path, 2, 1, 1, ".")
    savemat(tmp_path / "ILSVRC2012_devkit_t12" / "data" / "meta.mat", {"synsets": {"WNID": "n01440764"}})
    with pytest.raises(RunError, match=r"meta.mat is not ImageNet's"):
        open_source("imagenet", tmp_path)


@pytest.mark.parametrize("archive", [False, True])
def test_cub200_keeps_its_own_split(tmp_path, archive):
    synthetic.write_cub200(tmp_path, archive=archive)
    raw = open_source("cub200", tmp_path)
    files = synthetic.cub200_files()
    paths = [line.split()[1] for line in files["images.txt"].decode().splitlines()]
    expected = [(f"images/{path}", int(path[:3]) - 1) for path in paths]
    for split, keep in (("train", lambda n: n % 3 != 1), ("val", lambda n: n % 3 == 1)):
        chosen = [row for n, row in enumerate(expected) if keep(n)]
        assert described(raw.splits[split]) == [path for path, _ in chosen]
        assert samples(raw.splits[split]) == [(files[path], label) for path, label in chosen]
    assert raw.classes[1] == "002.Laysan_Albatross"
    assert sorted(p.name for p in tmp_path.iterdir()) == (["CUB_200_2011.tgz"] if archive else ["CUB_200_2011"])


def test_cub200_from_its_archive_is_the_same_data_set_and_goes_to_workers(tmp_path):
    for place in ("folder", "archive"):
        synthetic.write_cub200(tmp_path / place, archive=place == "archive")
    folder = prepare("cub200", tmp_path / "folder", tmp_path / "out 1", PrepareOptions(3, 1))
    archive = prepare("cub200", tmp_path / "archive", tmp_path / "out 2", PrepareOptions(3, 2))
    assert folder.fingerprint == archive.fingerprint
    direct = open_source("cub200", tmp_path / "folder" / "CUB_200_2011")  # the folder itself may be named, too
    assert samples(direct.splits["train"]) == samples(open_source("cub200", tmp_path / "folder").splits["train"])


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("images.txt", b"_0000_60.jpg", b"_9999_60.jpg", "lacks 2 of the 8 images"),
        ("images.txt", b"1 001", b"1 ../001", "lacks 1"),
        ("images.txt", b"2 001", b"1 001", "line 2"),
        ("images.txt", b"_0001_61.jpg\n3", b"_0000_60.jpg\n3", ""),
        ("image_class_labels.txt", b"4 1\n", b"", "at odds about image 4"),
        ("image_class_labels.txt", b"4 1\n", b"4 7\n", "the class '7'"),
        ("train_test_split.txt", b"5 0\n", b"5 2\n", "'2' of image 5"),
        ("classes.txt", b"2 002", b"5 002", "classes.txt"),
        ("classes.txt", None, None, "does not hold classes.txt"),
    ],
)
def test_lists_of_cub200_that_are_damaged_or_at_odds_are_named(tmp_path, name, old, new, message):
    synthetic.write_cub200(tmp_path, archive=False)
    path = tmp_path / "CUB_200_2011" / name
    if old is None:
        path.unlink()
    else:
        assert old in path.read_bytes()
        path.write_bytes(path.read_bytes().replace(old, new))
    if not message:
        assert len(open_source("cub200", tmp_path).splits["val"]) == 4  # an image of both splits is in each
        return
    with pytest.raises(RunError, match=message):
        open_source("cub200", tmp_path)


def test_an_image_listed_twice_in_a_split_is_named(tmp_path):
    synthetic.write_cub200(tmp_path, archive=False)
    path = tmp_path / "CUB_200_2011" / "images.txt"
    lines = path.read_text().splitlines()
    lines[2] = "3 " + lines[0].split()[1]
    path.write_text("\n".join(lines))
    with pytest.raises(RunError, match="twice"):
        open_source("cub200", tmp_path)


@pytest.mark.parametrize("archive", [False, True])
def test_dogs_follow_their_lists(tmp_path, archive):
    synthetic.write_dogs(tmp_path, archive=archive)
    raw = open_source("dogs", tmp_path)
    images, _ = synthetic.dogs_files()
    paths = list(images)
    for split, places in (("train", [6, 0, 2, 9]), ("val", [1, 3, 5, 4])):
        assert described(raw.splits[split]) == [paths[n] for n in places]
        assert samples(raw.splits[split]) == [(images[paths[n]], int(n >= 5)) for n in places]
    assert raw.classes == synthetic.DOGS
    other = tmp_path / "other"
    synthetic.write_dogs(other, archive=not archive)
    assert open_source("dogs", other).identity == raw.identity


@pytest.mark.parametrize("missing", ["images.tar", "lists.tar"])
def test_a_missing_piece_of_dogs_is_named(tmp_path, missing):
    synthetic.write_dogs(tmp_path, archive=True)
    (tmp_path / missing).unlink()
    with pytest.raises(UsageError, match=missing):
        open_source("dogs", tmp_path)


def test_a_dog_that_its_archive_lacks_is_named(tmp_path):
    images, lists = synthetic.dogs_files()
    images.pop(f"Images/{synthetic.DOGS[0]}/n02085620_23.jpg")
    synthetic.write_files(tmp_path, images | lists)
    with pytest.raises(RunError, match=r"lacks 1 of the 4 images .*n02085620_23.jpg"):
        open_source("dogs", tmp_path)


@pytest.mark.parametrize("labels", [[1, 1, 1, 2], [1, 3, 3, 1], [1, 2]])
def test_labels_of_dogs_that_do_not_fit_their_folders_are_named(tmp_path, labels):
    from scipy.io import savemat

    synthetic.write_dogs(tmp_path, archive=False)
    cells = np.empty((4, 1), object)
    cells[:, 0] = [f"{synthetic.DOGS[n]}/{synthetic.DOGS[n][:9]}_3.jpg" for n in (0, 1, 1, 0)]
    savemat(tmp_path / "train_list.mat", {"file_list": cells, "labels": np.array(labels, float)[:, None]})
    with pytest.raises(RunError, match="damaged"):
        open_source("dogs", tmp_path)


@pytest.mark.parametrize("kept", [10, 0.5, -1])
def test_a_cut_gzipped_archive_is_named(tmp_path, kept):
    synthetic.write_cub200(tmp_path, archive=True)
    path = tmp_path / "CUB_200_2011.tgz"
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(RunError, match=r"CUB_200_2011.tgz is damaged: its gzip data do not unpack"):
        open_source("cub200", tmp_path)


def test_a_gzipped_archive_leaves_nothing_behind(tmp_path, monkeypatch):
    import tempfile

    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    synthetic.write_cub200(tmp_path, archive=True)
    raw = open_source("cub200", tmp_path)
    assert list((tmp_path / "tmp").iterdir()) == []
    assert len(raw.splits["train"].read(0)) > 100
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(OSError, match="absent"):
        open_source("cub200", tmp_path)


@pytest.mark.parametrize("source", ["imagenet", "cub200", "dogs"])
def test_sources_that_cannot_be_downloaded_ask_for_a_folder(tmp_path, source):
    with pytest.raises(UsageError, match="needs a folder"):
        open_source(source, None)
    with pytest.raises(UsageError, match=str(tmp_path)):
        open_source(source, tmp_path)


def test_the_published_counts_are_those_of_the_paper():
    counts = {name: (p.train, p.val, p.num_classes) for name, p in PUBLISHED.items() if name != "fashion-mnist"}
    assert counts == {
        "cifar10": (50_000, 10_000, 10),
        "cifar100": (50_000, 10_000, 100),
        "svhn": (73_257, 26_032, 10),
        "imagenet": (1_281_167, 50_000, 1000),
        "cub200": (5_994, 5_794, 200),
        "dogs": (12_000, 8_580, 120),
    }


def test_published_hashes_are_those_that_torchvision_checks():
    """Its sources are read, not imported: that takes seconds."""
    (place,) = importlib.util.find_spec("torchvision").submodule_search_locations
    texts = {p.name: p.read_text() for p in (Path(place) / "datasets").glob("*.py")}
    where = {"cifar10": "cifar.py", "cifar100": "cifar.py", "svhn": "svhn.py", "imagenet": "imagenet.py"}
    for source, file in where.items():
        for name, md5 in PUBLISHED[source].md5.items():
            assert f'"{md5}"' in texts[file] and f'"{name}"' in texts[file]
        for name in PUBLISHED[source].sizes:
            assert f'"{name}"' in texts[file]


def write(source, folder):
    match source:
        case "cifar10" | "cifar100":
            synthetic.cifar(folder, source)
        case "svhn":
            synthetic.svhn(folder)
        case "imagenet":
            synthetic.write_imagenet_tars(folder, 2, 2, 1)
        case "cub200":
            synthetic.write_cub200(folder, archive=True)
        case "dogs":
            synthetic.write_dogs(folder, archive=True)


@pytest.mark.parametrize("source", ["cifar10", "cifar100", "svhn", "imagenet", "cub200", "dogs"])
def test_a_part_of_a_data_set_is_named_as_such_and_recorded(tmp_path, capsys, source):
    import json

    write(source, tmp_path / "raw")
    dataset = prepare(source, tmp_path / "raw", tmp_path / "out", PrepareOptions(num_workers=1))
    told = capsys.readouterr().err
    expected = PUBLISHED[source]
    for split, count in (("train", expected.train), ("val", expected.val)):
        line = f"{split} has {dataset.splits[split].num_samples:,} images, published are {count:,}"
        assert f"warning: this is not {source} as published: {line}\n" in told
        assert line in json.loads((tmp_path / "out" / "dataset.json").read_text())["differences_from_published"]


def test_what_is_published_is_compared_in_counts_classes_sizes_and_hashes(tars, monkeypatch):
    import hashlib

    folder, _ = tars
    raw = open_source("imagenet", folder)
    md5 = hashlib.md5((folder / DEVKIT).read_bytes()).hexdigest()
    sizes = {name: (folder / name).stat().st_size for name in (TRAIN, VAL)}
    whole = Published(12, 8, 4, {DEVKIT: md5}, sizes)
    for expected, found in (
        (whole, []),
        (Published(13, 8, 4), ["train has 12 images, published are 13"]),
        (Published(12, 8, 5), ["it has 4 classes, published are 5"]),
        (Published(12, 8, 4, {DEVKIT: "0" * 32}), [f"{DEVKIT} has the MD5 {md5}, published is {'0' * 32}"]),
        (Published(12, 8, 4, {}, {VAL: 10**7}), [f"{VAL} has {sizes[VAL]:,} bytes, published are 10,000,000"]),
    ):
        monkeypatch.setitem(PUBLISHED, "imagenet", expected)
        assert published.differences(raw) == found


def test_classes_without_images_are_named(tmp_path):
    synthetic.write_imagenet_folders(tmp_path, 4, 2, 1, ".")
    for path in [*Path(tmp_path / "train").glob("n0144*/*"), *Path(tmp_path / "train").glob("n0144*")]:
        path.unlink() if path.is_file() else path.rmdir()
    raw = open_source("imagenet", tmp_path)
    assert sorted(set(raw.splits["train"].labels.tolist())) == [2, 3]
    wanted = "train has no image of n01440764 word 0, other word and of 1 more classes"
    assert wanted in published.differences(raw)


def test_a_download_that_differs_is_refused(tmp_path, monkeypatch):
    from andscale.data import sources

    synthetic.svhn(tmp_path / "mirror")
    monkeypatch.setattr(sources, "fetch_from_torchvision", lambda *_: tmp_path / "mirror")
    with pytest.raises(RunError, match=r"mirror\): not svhn as published \(train has 6 images"):
        prepare("svhn", None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_data_set_that_has_no_published_form_is_compared_with_nothing(tmp_path):
    synthetic.image_folder(tmp_path)
    assert published.differences(open_source("image-folder", tmp_path)) is None


def test_catalogues_from_archives_name_the_usual_paths(tars, tmp_path):
    dataset = prepare("imagenet", tars[0], tmp_path / "out", PrepareOptions(num_workers=1))
    assert load_catalogue(dataset, "val").sources[0] == "val/ILSVRC2012_val_00000001.JPEG"
