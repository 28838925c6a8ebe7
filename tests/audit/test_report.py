"""The HTML report: of a run, of features alone, of hostile names, damaged images and missing labels."""

import dataclasses
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from andscale.audit.inspecting import inspect_subject
from andscale.audit.report import charts, write_report
from andscale.audit.report.thumbnails import SIDE, make_thumbnail
from andscale.audit.subject import Subject, open_subject
from andscale.distributed import World
from andscale.errors import UsageError
from andscale.orchestration.jobs import run_step
from andscale.orchestration.steps import Step
from andscale.store.neighbourhoods import NeighbourhoodTable
from andscale.training.stopping import StopSignals
from tiny_runs import start_run

HOSTILE = '<script>alert(1)</script>" onload="x" \u202etxt\n' + "k" * 300


class Page(HTMLParser):
    """Elements with their attributes, and the text between them."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.words = [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    def named(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def run(tmp_path_factory, digits):
    """Two rounds over 143 digits, k = 3; read only."""
    sections = {"method": {"num_rounds": 2, "num_neighbours": 3}}
    layout = start_run(tmp_path_factory.mktemp("reported") / "tiny", digits, **sections)
    for step in (Step("train", 0), Step("index", 1), Step("train", 1), Step("index", 2)):
        run_step(layout.root, step, World(), StopSignals(), None)
    return layout.root


@pytest.fixture(scope="module")
def subject(run):
    return open_subject(run)


@pytest.fixture
def page_of(tmp_path):
    def write(subject, **arguments):
        write_report(subject, tmp_path / "report.html", **arguments)
        return Page(tmp_path / "report.html")

    return write


def without_samples(subject):
    return dataclasses.replace(subject, dataset=None, catalogue=None, audit_labels=None, classes=())


def test_every_figure_is_on_the_page(subject, page_of, tmp_path):
    page, found = page_of(subject), inspect_subject(subject)
    labels, graph = found["labels"], found["graph"]
    for value in (
        f"{found['groups'][0]['purity_at_1']:.1%}".replace("%", " %"),
        f"{labels['auroc_of_low_entropy']:.4f}",
        f"{labels['area_under_risk_coverage']:.4f}",
        f"{labels['by_class'][0]['purity_at_k']:.4f}",
        f"{found['entropy']['nats'][2]:.3f}",
        f"{graph['k_occurrence_skewness']:.2f}",
        f"a neighbour of {graph['hubs'][0]['k_occurrence']}",
        f"{100 * graph['mutual_fraction']:.1f} %",
        f"round 2: all {found['rounds'][1]['purity_at_1']:.4f}",
        "143 samples · K = 3 · 143 anchors",
        "; ".join(f"tenth {i}: {g['purity_at_1']:.4f}" for i, g in enumerate(found["groups"][-10:], 1)),
    ):
        assert value in page.text, value
    assert len(page.named("svg")) > 5
    assert all(figure.get("role") == "img" or figure.get("aria-hidden") for figure in page.named("svg"))
    for heading in ("Most certain", "Least certain", "Impure", "Largest hubs", "Random", "Near-duplicates", "Rounds"):
        assert heading in page.text
    assert (tmp_path / "report.html").stat().st_size < 2 << 20


def test_the_file_needs_no_network_and_no_script(subject, page_of, tmp_path):
    page = page_of(subject)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"data:image/webp;base64,[\w+/=]+", "", text))
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.elements}
    assert len(page.named("img")) > 50
    assert all(image["src"].startswith("data:image/webp;base64,") and image["alt"] for image in page.named("img"))


def test_names_from_data_are_text_and_stay_short(subject, page_of):
    catalogue = dataclasses.replace(subject.catalogue, keys=[HOSTILE] * len(subject.table))
    hostile = dataclasses.replace(subject, catalogue=catalogue, classes=(HOSTILE,) * 10)
    page, plain = page_of(hostile), page_of(subject)
    assert "<script>alert(1)</script>" in page.text
    assert not page.named("script")
    assert "\u202e" not in page.text
    assert "k" * 100 not in page.text
    # an attribute from data would be one that the harmless report does not have
    assert {(tag, name) for tag, found in page.elements for name in found} <= {
        (tag, name) for tag, found in plain.elements for name in found
    }
    values = [value or "" for _, found in page.elements for value in found.values()]
    assert not [value for value in values if "alert" in value]


def test_without_labels_purity_is_left_out_and_that_is_said(subject, page_of):
    labels = subject.audit_labels.copy()
    labels[5] = -1
    page = page_of(dataclasses.replace(subject, audit_labels=labels))
    assert "Not every sample has a label" in page.text
    assert "purity@" not in page.text
    assert "Most certain anchors" in page.text
    bare = page_of(dataclasses.replace(subject, audit_labels=None))
    assert "There are no labels: purity and confusion are left out" in bare.text
    assert "Not every sample" not in bare.text


def test_an_approximate_table_is_said_to_be_one(subject, page_of):
    assert "Approximate" not in page_of(subject).text
    figures = {"mode": "approximate", "recall_at_1": 0.79}
    manifest = dataclasses.replace(subject.manifest, figures=figures)
    page = page_of(dataclasses.replace(subject, manifest=manifest))
    assert "Approximate neighbourhoods (recall@1 0.7900): purity, hubs" in page.text


def test_leakage_is_on_the_page_where_it_was_looked_for(subject, page_of):
    leak = {"val_id": 1234, "val_source": HOSTILE, "train_id": 5678, "train_source": HOSTILE, "similarity": 0.99}
    leaks = [leak | {"val_id": 1234 + i, "same_class": same} for i, same in enumerate([None, True, False] * 5)]
    found = {"model": "/home/me/runs/tiny/rounds/01/model", "threshold": 0.9, "num_val": 50, "num_leaked": 15}
    inspected = inspect_subject(subject)
    assert "Leakage" not in page_of(subject, inspected=inspected).text
    page = page_of(subject, inspected=inspected | {"leakage": found | {"leaks": leaks}})
    assert "15 of 50 validation images have a training image at similarity 0.9 or more" in page.text
    assert "(features of rounds/01/model ); the most similar first" in page.text
    assert "#1245" in page.text
    assert "#1246" not in page.text, "twelve are shown"
    assert "<script>alert(1)</script>" in page.text
    assert not page.named("script")
    assert "\u202e" not in page.text
    none = page_of(subject, inspected=inspected | {"leakage": found | {"num_leaked": 0, "leaks": []}})
    assert "0 of 50 validation images" in none.text


def test_of_features_alone_there_are_ids_and_figures(subject, page_of):
    page = page_of(dataclasses.replace(without_samples(subject), round_number=None))
    assert "Only features are known" in page.text
    assert not page.named("img")
    assert f"#{int(np.argmin(subject.table.entropies))}" in page.text


def test_images_on_a_server_are_not_fetched(subject, page_of):
    remote = dataclasses.replace(subject.dataset, url="http://localhost:9/data")
    page = page_of(dataclasses.replace(subject, dataset=remote), inspected=inspect_subject(subject))
    assert "images lie on a server" in page.text
    assert not page.named("img")


def test_a_damaged_image_has_its_reason_in_its_place(subject, page_of):
    lengths = subject.catalogue.lengths.copy()
    worst = int(np.argmax(np.where(subject.table.is_anchor, subject.table.entropies, -1)))
    lengths[worst] = 40
    page = page_of(dataclasses.replace(subject, catalogue=dataclasses.replace(subject.catalogue, lengths=lengths)))
    assert "no image: an image cannot be decoded" in page.text
    assert len(page.named("img")) > 50
    assert not [image for image in page.named("img") if image["alt"] == f"sample {worst}"]


def test_one_neighbour_no_anchor_and_equal_entropies_make_a_report(subject, page_of):
    old = subject.table
    table = NeighbourhoodTable(
        old.neighbour_ids[:, :1], old.similarities[:, :1], np.ones(len(old), np.float32), np.zeros(len(old), bool)
    )
    page = page_of(dataclasses.replace(without_samples(subject), table=table, round_number=None))
    assert "Most certain samples" in page.text
    one = page_of(Subject(subject.root, None, table, subject.manifest, *_samples(subject)))
    assert "purity@1, all" in one.text
    assert "purity@1, anchors" not in one.text


def _samples(subject):
    return subject.dataset, subject.catalogue, subject.audit_labels, subject.classes


def test_groups_of_near_duplicates_are_shown(subject, page_of):
    near = {"threshold": 0.5, "num_groups": 1, "num_samples": 3, "groups": [[7, 8, 9]]}
    page = page_of(subject, inspected=inspect_subject(subject) | {"near_duplicates": near})
    assert "3 samples in 1 groups are linked by similarities of at least 0.5" in page.text
    assert [image["alt"] for image in page.named("img")][-3:] == ["sample 7", "sample 8", "sample 9"]


def test_large_images_become_small_and_small_ones_keep_their_pixels():
    import base64
    import io

    from PIL import Image

    def thumbnail_of(image, form):
        out = io.BytesIO()
        image.save(out, form)
        data = base64.b64decode(make_thumbnail(out.getvalue()).uri.split(",")[1])
        return Image.open(io.BytesIO(data)).convert("RGB")

    assert thumbnail_of(Image.new("RGB", (1600, 800), "red"), "JPEG").size == (SIDE, SIDE // 2)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (28, 28, 3), np.uint8))
    assert np.array_equal(np.asarray(thumbnail_of(noise, "PNG")), np.asarray(noise))


def test_a_folder_is_refused_and_an_old_report_replaced(subject, tmp_path):
    with pytest.raises(UsageError, match="is a folder"):
        write_report(subject, tmp_path)
    (tmp_path / "report.html").write_text("old")
    write_report(subject, tmp_path / "report.html")
    assert Page(tmp_path / "report.html").named("svg")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("occurrence", "description"),
    [
        ([0, 0], "0 times: 2 samples"),
        (
            [0, 1, 2, 3, 4, 5, 9, 17],
            "3\u20134 times: 2 samples; 5\u20138 times: 1 samples; 9\u201316 times: 1 samples; 17 times",
        ),
        (
            [0, 3, 10**6],
            "1 times: 0 samples; 2\u201316 times: 1 samples; 17\u2013256 times: 0 samples; 257\u20134096 times",
        ),
        ([0, 3], "0 times: 1 samples; 1 times: 0 samples; 2 times: 0 samples; 3 times: 1 samples"),
    ],
)
def test_k_occurrences_are_grouped_by_doubling(occurrence, description):
    assert description in charts.occurrence_chart(np.array(occurrence))
