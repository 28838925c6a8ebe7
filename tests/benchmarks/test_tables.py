import numpy as np
import pytest

from benchmarks import table
from benchmarks.bench import Results, Settings, make_jobs
from benchmarks.measuring import Measurement
from benchmarks.plot import plot_growth
from benchmarks.truth import Truth


@pytest.fixture
def results():
    features = np.eye(4, dtype=np.float32)
    features[1] = features[0]
    truth = Truth(features, np.array([0]), {1: np.array([1.0]), 50: np.array([1.0])}, np.array([0.5]))
    jobs = make_jobs(2)
    found = {name: Measurement({0: 4.0, 1: 6.0}) for name in jobs}
    found["ours"] = Measurement({0: 2.0, 1: 3.0}, 5 * 2**20, [[1]], [0.25])
    found["usearch"] = Measurement(problem="ImportError: No module named 'usearch'")
    growth = {"ours": {10: 0.01234, 20: 123.4}, "original": {10: 1.0, 20: None}}
    return Results(Settings(sizes=(10, 20)), 2, jobs, found, truth, growth)


def _cells(text, first):
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {first} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_says_how_right_how_fast_and_how_large(results):
    cells = _cells(table.comparison(results), "andscale")
    assert cells == ["andscale", "neighbours, H", "1.0000", "2.5e-01", "2.5", "2", "5", "1.00"]


def test_a_peer_without_entropies_or_figures_has_none(results):
    cells = _cells(table.comparison(results), "FAISS IndexFlatIP")
    assert cells == ["FAISS IndexFlatIP", "neighbours", "-", "-", "5", "2", "-", "2.00"]


def test_a_peer_that_is_missing_says_why(results):
    cells = _cells(table.comparison(results), "usearch HNSW")
    assert cells == ["usearch HNSW", "ImportError: No module named 'usearch'", "-", "-", "-", "0", "-", "-"]


def test_points_that_were_not_run_say_so(results):
    text = table.growth(results)
    assert _cells(text, "10") == ["10", "0.0123", "1"]
    assert _cells(text, "20") == ["20", "123", "not run"]


@pytest.mark.parametrize(
    ("value", "verdict"),
    [(0.3, "aim reached"), (0.5, "required reached, aim missed"), (0.6, "missed"), (None, "not measured")],
)
def test_smaller_is_better_unless_said(value, verdict):
    target = table.Target("", "ours", "faiss", aim=0.35, required=0.55)
    assert target.verdict(value) == verdict


@pytest.mark.parametrize(("value", "verdict"), [(9, "aim reached"), (6, "required reached, aim missed"), (5, "missed")])
def test_larger_is_better_where_said(value, verdict):
    assert table.Target("", "original", "ours", aim=8, required=5.5, at_least=True).verdict(value) == verdict


def test_every_target_has_a_row(results):
    text = table.verdicts(results.measurements)
    assert _cells(text, "original algorithm / andscale")[1:] == [">= 8", ">= 5.5", "2.00", "missed"]
    assert _cells(text, "andscale / bare GEMM")[1:] == ["<= 0.6", "<= 0.95", "0.50", "aim reached"]
    assert len(text.splitlines()) == 2 + len(table.targets())


def test_columns_line_up():
    text = table.markdown(["what", "s"], [["a longer name", "1.5"], ["b", "-"]])
    assert text == (
        "| what          |   s |\n"
        "|---------------|----:|\n"
        "| a longer name | 1.5 |\n"
        "| b             |   - |"
    )  # fmt: skip


def test_the_plot_is_written_twice_and_always_the_same(tmp_path):
    growth = {"andscale": {10: 0.1, 20: 0.4}, "FAISS": {10: 0.2, 20: None}}
    svg, png = plot_growth(growth, tmp_path / "docs" / "growth", "2 threads", "andscale")
    assert png.read_bytes().startswith(b"\x89PNG")
    first = svg.read_text()
    assert "<svg" in first
    plot_growth(growth, tmp_path / "docs" / "growth", "2 threads", "andscale")
    assert svg.read_text() == first
