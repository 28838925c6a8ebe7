import json
from dataclasses import replace

import pytest

from andscale.distributed import World
from andscale.evaluation.evaluate import evaluate_round
from andscale.indexing.rebuild import rebuild_index
from andscale.orchestration.founding import held_run
from andscale.orchestration.launch import open_run
from andscale.orchestration.steps import pending_steps
from andscale.reproduction import runs as running
from andscale.reproduction.plan import Plan, planned_runs
from andscale.reproduction.results import write_results
from andscale.reproduction.runs import run_all
from andscale.reproduction.tables import table_named
from andscale.store.run_layout import RunLayout
from andscale.training.loop import train_round

SETTINGS = ("optim.num_epochs=1", "data.max_train_samples=143", "data.max_val_samples=50", "index.check_rows=20")


def launch_here(request):
    """As ``launch``, each step in this process."""
    config, layout = open_run(request.run, request), RunLayout(request.run)
    with held_run(request.run, config):
        for step in pending_steps(layout, request.rounds, config.method):
            match step.kind:
                case "index":
                    rebuild_index(layout.root, step.round_number)
                case "train":
                    train_round(layout.root, step.round_number, World())
                case "evaluate":
                    evaluate_round(layout.root, step.round_number)


def test_table_6_from_nothing_to_its_files(tmp_path, monkeypatch, digits):
    monkeypatch.setattr(running, "launch", launch_here)
    table = table_named("table6")
    plan = Plan(table, "smoke", 1, (f"data.dataset={digits.root}", *SETTINGS), root=tmp_path / "runs")
    assert run_all(plan) == []
    written = write_results(plan, tmp_path / "out", "the command")
    assert [path.name for path in written] == ["table6-smoke.md", "table6-smoke.json", "table6-smoke.svg"]
    record = json.loads(written[1].read_text())
    last = {"One-off": 1, "Curriculum": 4}
    for row, run in zip(record["rows"], planned_runs(plan), strict=True):
        folder = RunLayout(run.root).round(last[row["label"]]).evaluation
        accuracy = json.loads((folder / "evaluation.json").read_text())["accuracy"]
        assert row["values"]["kNN"] == [pytest.approx(100 * accuracy)]
        assert f"{100 * accuracy:.1f}" in written[0].read_text()
    one_off, curriculum = (row["runs"][0] for row in record["rows"])
    assert one_off["round_0_of"] is None
    assert one_off["run"].endswith(f"runs/{curriculum['round_0_of']}")
    assert not RunLayout(planned_runs(plan)[1].root).round(0).checkpoints.exists()
    assert 0 < record["rank_hours"] < 0.1
    assert record["rank"] == "process", "no GPU was there"


def test_rows_that_are_compared_are_shown_after_every_round(tmp_path, monkeypatch, digits):
    monkeypatch.setattr(running, "launch", launch_here)
    table = table_named("fashion_mnist")
    table = replace(table, arms=tuple(arm for arm in table.arms if arm.label in table.compared))
    settings = (f"data.dataset={digits.root}", *SETTINGS, "method.num_rounds=1")
    plan = Plan(table, "smoke", 1, settings, root=tmp_path / "runs")
    assert run_all(plan) == []
    text, record, figure = (path.read_text() for path in write_results(plan, tmp_path / "out", "the command"))
    rows = {row["label"]: row["rounds"] for row in json.loads(record)["rows"]}
    # round 0 is the instances' and is evaluated there
    assert {label: [at["epochs"] for at in rounds] for label, rounds in rows.items()} == {
        "Instance": [1, 2],
        "AND": [2],
    }
    for run in planned_runs(plan):
        evaluated = RunLayout(run.root).round(1).evaluation / "evaluation.json"
        accuracy = 100 * json.loads(evaluated.read_text())["accuracy"]
        assert rows[run.arm.label][-1]["values"]["kNN"] == [pytest.approx(accuracy)]
    apart = rows["AND"][-1]["values"]["kNN"][0] - rows["Instance"][-1]["values"]["kNN"][0]
    assert f"| AND - Instance |  | {apart:+.2f} |" in text
    assert "published" not in text
    assert "epochs" in figure
