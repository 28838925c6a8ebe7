"""The audit's command on a run of two rounds, and on tables without a run."""

import csv
import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.sparse
from cleanlab.data_valuation import data_shapley_knn

from andscale.audit.audit_text import audit_text, shown
from andscale.audit.exports import distances, export
from andscale.audit.inspecting import as_text_cell, inspect_subject, write_csv
from andscale.audit.round_figures import rounds_table
from andscale.audit.subject import load_features, open_subject
from andscale.audit.tables import run_summary
from andscale.cli import call
from andscale.distributed import World
from andscale.errors import UsageError
from andscale.orchestration.jobs import run_step
from andscale.orchestration.steps import Step
from andscale.training.stopping import StopSignals
from tiny_runs import start_run


@pytest.fixture(scope="module")
def run(tmp_path_factory, digits):
    """Two rounds over 143 digits, k = 2; read only."""
    sections = {"method": {"num_rounds": 2, "num_neighbours": 2}}
    layout = start_run(tmp_path_factory.mktemp("audited") / "tiny", digits, **sections)
    for step in (Step("train", 0), Step("index", 1), Step("train", 1), Step("index", 2)):
        run_step(layout.root, step, World(), StopSignals(), None)
    return layout.root


@pytest.fixture(scope="module")
def foreign(tmp_path_factory, run):
    """A table that tools/discover.py makes of the memory of round 1, and the file of its features."""
    folder = tmp_path_factory.mktemp("foreign")
    np.save(folder / "features.npy", load_features(open_subject(run, 2)))
    assert call("discover", [str(folder / "features.npy"), str(folder / "table"), "--k", "2"]) == 0
    return folder


def inspect(capsys, *arguments):
    capsys.readouterr()
    code = call("inspect", [str(a) for a in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_all_figures_are_there_and_agree_with_the_table(run, capsys):
    code, out, _ = inspect(capsys, "--run", run, "--json")
    found = json.loads(out)
    subject = open_subject(run)
    assert code == 0
    assert (found["round"], found["num_samples"], found["labelled"]) == (2, 143, True)
    assert [record["round"] for record in found["rounds"]] == [1, 2]
    first, second = (open_subject(run, number).table for number in (1, 2))
    last = found["rounds"][1]
    assert last["stayed"] == int((first.is_anchor & second.is_anchor).sum())
    assert last["came"] + last["stayed"] == int(second.is_anchor.sum()) == found["rounds"][1]["num_anchors"]
    labels = found["labels"]
    assert labels["consistent_anchors"] + labels["inconsistent_anchors"] == int(second.is_anchor.sum())
    assert labels["risk_coverage"][-1]["risk"] == pytest.approx(1 - found["groups"][0]["purity_at_1"])
    assert sum(record["num_samples"] for record in labels["by_class"]) == 143
    assert found["entropy"]["effective_neighbours"] == pytest.approx(np.exp(found["entropy"]["nats"]))
    assert found["graph"]["hubs"][0]["source"] == subject.catalogue.sources[found["graph"]["hubs"][0]["sample_id"]]


def test_the_terminal_shows_every_section(run, capsys):
    code, out, _ = inspect(capsys, "--run", run)
    assert code == 0
    for words in ("purity@1", "mutual pairs", "hubness", "near-duplicates", "AUROC", "class, best first", "stayed"):
        assert words in out


@pytest.mark.parametrize(("auroc", "warned"), [(0.4999, True), (0.5, False), (0.7, False), (None, False)])
def test_entropy_that_picks_the_wrong_samples_is_said(run, auroc, warned):
    found = inspect_subject(open_subject(run))
    text = audit_text(found | {"labels": found["labels"] | {"auroc_of_low_entropy": auroc}})
    assert ("low entropy picks the wrong samples" in text) is warned


def test_tables_are_written_as_csv(run, tmp_path, capsys):
    code, out, err = inspect(capsys, "--run", run, "--csv", tmp_path / "figures", "--json")
    assert code == 0
    assert "wrote" in err
    assert json.loads(out)["round"] == 2
    with (tmp_path / "figures" / "rounds.csv").open() as file:
        rounds = list(csv.DictReader(file))
    assert [row["round"] for row in rounds] == ["1", "2"]
    assert rounds[0]["stayed"] == ""
    assert {p.stem for p in (tmp_path / "figures").iterdir()} >= {
        "groups",
        "hubs",
        "classes",
        "risk_coverage",
        "rounds",
    }


def test_every_near_duplicate_is_in_its_csv(run, tmp_path):
    subject = open_subject(run)
    found = inspect_subject(subject, threshold=-1)
    assert [len(group) for group in found["near_duplicates"]["groups"]] == [100], "what JSON lists"
    write_csv(subject, found, tmp_path)
    with (tmp_path / "near_duplicates.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["group"], row["sample_id"]) for row in rows] == [("1", str(i)) for i in range(143)]


def test_no_csv_of_another_audit_stays_beside_those_of_this(foreign, tmp_path, capsys):
    for name in ("leaks.csv", "classes.csv", "groups.csv", "mine.csv"):
        (tmp_path / name).write_text("old")
    assert inspect(capsys, "--run", foreign / "table", "--csv", tmp_path)[0] == 0
    assert not {"leaks.csv", "classes.csv"} & {path.name for path in tmp_path.iterdir()}
    assert (tmp_path / "mine.csv").read_text() == "old"
    assert (tmp_path / "groups.csv").read_text() != "old"


def test_the_purity_of_the_launch_is_that_of_the_audit(run):
    launched = {record["round"]: record for record in run_summary(run)}
    for record in rounds_table(run):
        ended = launched[record["round"]]
        assert ended["purity_of_anchors"] == record["purity_of_anchors"]
        assert ended["purity_of_all"] == record["purity_at_1"]


def approximate(subject, **figures):
    """The same table, as approximate discovery would give it."""
    table = dataclasses.replace(subject.table, entropy_stderr=np.full(len(subject.table), 0.25, np.float32))
    manifest = dataclasses.replace(subject.manifest, figures={"mode": "approximate"} | figures)
    return dataclasses.replace(subject, table=table, manifest=manifest)


def test_an_approximate_table_is_not_shown_as_an_exact_one(run):
    subject = open_subject(run)
    exact = inspect_subject(subject)
    assert exact["discovery"]["mode"] == "exact"
    assert "pproximate" not in audit_text(exact)
    quality = {"recall_at_1": 0.79, "recall_at_k": 0.5, "mean_entropy_stderr_nats": 0.25}
    found = inspect_subject(approximate(subject, **quality))
    assert found["discovery"] == {"mode": "approximate"} | quality
    line = next(line for line in audit_text(found).splitlines() if line.startswith("Approximate neighbourhoods"))
    for words in (
        "recall@1 0.7900",
        "recall@k 0.5000",
        "0.2500 nats",
        "near-duplicates that were not found are missing",
    ):
        assert words in line
    text = audit_text(inspect_subject(approximate(subject)))
    assert "Approximate neighbourhoods: purity" in text, "a table may lack the figures"


@pytest.mark.parametrize("form", ["atlas", "parquet"])
def test_standard_errors_are_exported_where_there_are_some(run, tmp_path, form):
    subject = open_subject(run)
    export(subject, f"{form}:{tmp_path / 'exact'}")
    export(approximate(subject), f"{form}:{tmp_path / 'approximate'}")
    exact, found = (pq.read_table(tmp_path / name) for name in ("exact", "approximate"))
    assert "entropy_stderr" not in exact.column_names
    assert found["entropy_stderr"].to_pylist() == [0.25] * 143
    assert found.drop_columns("entropy_stderr").equals(exact)


def test_one_sample_is_followed_through_the_rounds(run, capsys):
    code, out, _ = inspect(capsys, "--run", run, "--by", 7, "--json")
    found = json.loads(out)
    assert code == 0
    assert [record["round"] for record in found["rounds"]] == [1, 2]
    tables = [open_subject(run, number).table for number in (1, 2)]
    for record, table in zip(found["rounds"], tables, strict=True):
        assert [n["sample_id"] for n in record["neighbours"]] == table.neighbour_ids[7].tolist()
    new = [n["sample_id"] not in tables[0].neighbour_ids[7] for n in found["rounds"][1]["neighbours"]]
    assert [n["is_new"] for n in found["rounds"][1]["neighbours"]] == new
    assert "sample 7" in inspect(capsys, "--run", run, "--by", 7)[1]
    code, _, err = inspect(capsys, "--run", run, "--by", 143)
    assert (code, err.count("\n")) == (2, 1)
    assert "has no sample 143: its ids are 0 to 142" in err


def test_a_purity_below_the_wanted_one_is_exit_code_1(run, capsys):
    purity = json.loads(inspect(capsys, "--run", run, "--json")[1])["groups"][1]["purity_at_1"]
    assert inspect(capsys, "--run", run, "--min-purity", purity)[0] == 0
    code, _, err = inspect(capsys, "--run", run, "--min-purity", min(1.0, purity + 0.01) if purity < 1 else 1.1)
    assert code == 1
    assert f"purity@1 of the anchors of {run} is {purity:.4f}, wanted is" in err


def test_training_images_in_the_validation_split_are_found(run, capsys):
    code, out, _ = inspect(capsys, "--run", run, "--json", "--leakage", "--near-duplicate", "0.999999")
    strict = json.loads(out)["leakage"]
    assert (code, strict["num_val"]) == (0, 50)
    loose = json.loads(inspect(capsys, "--run", run, "--json", "--leakage", "--near-duplicate", "-1")[1])["leakage"]
    assert loose["num_leaked"] == 50, "every image has a nearest one"
    similarities = [leak["similarity"] for leak in loose["leaks"]]
    assert similarities == sorted(similarities, reverse=True)
    assert strict["num_leaked"] == sum(s >= 0.999999 for s in similarities)


def test_a_table_without_a_run_has_what_is_known_of_it(foreign, digits, tmp_path, capsys):
    code, out, _ = inspect(capsys, "--run", foreign / "table", "--json")
    bare = json.loads(out)
    assert (code, bare["labelled"], bare["labels"], bare["rounds"]) == (0, False, None, None)
    assert bare["graph"]["hubs"][0]["source"] is None
    labels = open_subject(foreign / "table", known=digits.root).audit_labels
    np.save(tmp_path / "labels.npy", labels)
    for known in (digits.root, tmp_path / "labels.npy"):
        labelled = json.loads(inspect(capsys, "--run", foreign / "table", "--dataset", known, "--json")[1])
        assert labelled["labelled"]
        assert labelled["graph"]["mutual_fraction"] == bare["graph"]["mutual_fraction"]
    some = labels.copy()
    some[3] = -1
    np.save(tmp_path / "some.npy", some)
    code, out, _ = inspect(capsys, "--run", foreign / "table", "--dataset", tmp_path / "some.npy")
    assert (code, "some samples have no label: no purity" in out, "round None" in out) == (0, True, False)
    code, _, err = inspect(
        capsys, "--run", foreign / "table", "--dataset", tmp_path / "some.npy", "--min-purity", "0.1"
    )
    assert (code, "purity needs a label for every sample" in err) == (2, True)


def test_leakage_is_of_the_round_that_was_asked_for(run, capsys):
    found = json.loads(inspect(capsys, "--run", run, "--json", "--leakage", "--round", "1")[1])["leakage"]
    assert "rounds/01" in found["model"]
    code, _, err = inspect(capsys, "--run", run, "--leakage", "--round", "2")
    assert (code, "round 2 has no model" in err) == (2, True), "another round's model would answer another question"


@pytest.mark.parametrize("alone", [["--by", "3"], ["--export", "parquet:x.parquet"]])
def test_a_purity_that_would_not_be_looked_at_is_refused(run, tmp_path, monkeypatch, capsys, alone):
    monkeypatch.chdir(tmp_path)
    code, out, err = inspect(capsys, "--run", run, *alone, "--min-purity", "1")
    assert (code, out) == (2, "")
    assert f"{alone[0]} does nothing else: ask for --min-purity in a call of its own" in err
    assert not list(tmp_path.iterdir())


def test_no_purity_meets_what_is_no_number(run, capsys):
    assert inspect(capsys, "--run", run, "--min-purity", "nan")[0] == 1


def test_labels_far_apart_take_no_square_of_memory(foreign, tmp_path, capsys):
    labels = np.arange(143) % 3
    labels[5] = 2_000_000
    np.save(tmp_path / "far.npy", labels)
    code, out, _ = inspect(capsys, "--run", foreign / "table", "--dataset", tmp_path / "far.npy")
    assert (code, "2000000" in out) == (0, True)
    np.save(tmp_path / "hashes.npy", labels + 2**32)
    code, _, err = inspect(capsys, "--run", foreign / "table", "--dataset", tmp_path / "hashes.npy")
    assert (code, err.count("\n"), "expected class numbers below 16777216" in err) == (2, 1, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--round", "1"], "is one table and has no rounds"),
        (["--leakage"], "--leakage needs a run's model"),
        (["--dataset", "none.npy"], "none.npy does not exist"),
        (["--dataset", "short.npy"], "expected (143,) integers"),
        (["--export", "excel:x"], "expected FORMAT:PATH with one of atlas, cleanlab, fiftyone, parquet"),
        (["--export", "fiftyone:x"], "name a prepared data set"),
    ],
)
def test_what_a_table_cannot_give_is_one_line(foreign, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    np.save("short.npy", np.zeros(5, np.int64))
    code, _, err = inspect(capsys, "--run", foreign / "table", *arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert words in err


def test_features_are_those_of_the_table(run, foreign, tmp_path):
    subject = open_subject(run, 2)
    features = load_features(subject)
    best = (features @ features.T - 2 * np.eye(143)).max(axis=1)
    np.testing.assert_allclose(best, subject.table.similarities[:, 0], atol=1e-6)
    table = open_subject(foreign / "table")
    np.testing.assert_allclose(load_features(table, foreign / "features.npy"), features, atol=1e-6)
    with pytest.raises(UsageError, match="has no features of its own"):
        load_features(table)
    np.save(tmp_path / "other.npy", features[::-1])
    with pytest.raises(Exception, match="does not hold the features that"):
        load_features(table, tmp_path / "other.npy")


def test_cleanlab_takes_the_exported_graph(run, tmp_path, capsys):
    assert inspect(capsys, "--run", run, "--export", f"cleanlab:{tmp_path / 'graph.npz'}")[0] == 0
    subject, graph = open_subject(run), scipy.sparse.load_npz(tmp_path / "graph.npz")
    assert graph.shape == (143, 143)
    assert (graph.indices.reshape(143, 2) == subject.table.neighbour_ids).all()
    values = data_shapley_knn(subject.audit_labels, knn_graph=graph, k=2)
    right = subject.audit_labels[subject.table.neighbour_ids] == subject.audit_labels[:, None]
    assert values[right.all(axis=1)].mean() > values[~right.any(axis=1)].mean()
    np.testing.assert_allclose(graph.data.reshape(143, 2), distances(subject))


def test_the_exported_tables_hold_every_neighbour(run, tmp_path, capsys):
    subject = open_subject(run)
    for form in ("atlas", "parquet"):
        code, out, _ = inspect(capsys, "--run", run, "--export", f"{form}:{tmp_path / form}.parquet")
        assert (code, out.startswith(f"wrote {tmp_path / form}.parquet")) == (0, True)
    atlas = pq.read_table(tmp_path / "atlas.parquet").to_pylist()
    assert set(atlas[0]["neighbours"]) == {"ids", "distances"}, "what Embedding Atlas documents"
    assert [row["sample_id"] for row in atlas] == list(range(143)), "its ids are row numbers"
    assert [row["neighbours"]["ids"] for row in atlas] == subject.table.neighbour_ids.tolist()
    np.testing.assert_allclose([row["neighbours"]["distances"] for row in atlas], distances(subject))
    plain = pq.read_table(tmp_path / "parquet.parquet").to_pylist()
    assert [row["class"] for row in plain] == [subject.classes[label] for label in subject.audit_labels]
    code, _, err = inspect(capsys, "--run", run, "--export", f"atlas:{tmp_path / 'atlas.parquet'}")
    assert (code, "exists already" in err) == (2, True)


def test_fiftyone_gets_images_and_samples(run, tmp_path, capsys):
    assert inspect(capsys, "--run", run, "--export", f"fiftyone:{tmp_path / 'fifty'}")[0] == 0
    samples = json.loads((tmp_path / "fifty" / "samples.json").read_text())["samples"]
    subject = open_subject(run)
    assert len(samples) == 143
    assert samples[5]["ground_truth"]["label"] == subject.classes[subject.audit_labels[5]]
    assert samples[5]["neighbour_ids"] == subject.table.neighbour_ids[5].tolist()
    assert samples[5]["filepath"] == "data/000000005.png"
    assert all((tmp_path / "fifty" / sample["filepath"]).read_bytes()[1:4] == b"PNG" for sample in samples)


def test_an_image_that_cannot_be_exported_is_named_and_nothing_is_left(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("andscale.audit.exports.Shards.take", lambda _, sample_id: b"broken")
    code, _, err = inspect(capsys, "--run", run, "--export", f"fiftyone:{tmp_path / 'fifty'}")
    assert (code, "sample 0 cannot be exported: " in err) == (1, True)
    assert list(tmp_path.iterdir()) == []


def test_names_from_data_cannot_move_the_cursor_nor_be_formulas():
    assert shown("a\x1b[2Jb\nc\u202ed") == "a�[2Jb�c�d"
    assert len(shown("x" * 300)) == 40
    assert shown(None) == "-"
    assert [as_text_cell(v) for v in ("=1+1", "-x", "@a", -0.5, "plain")] == ["'=1+1", "'-x", "'@a", -0.5, "plain"]
