import copy

import pytest

from andscale.errors import RunError, UsageError
from andscale.orchestration.sharing import initialisation_digest
from andscale.reproduction import runs as running
from andscale.reproduction.plan import SCALES, Plan, describe_plan, planned_runs
from andscale.reproduction.results import collect, markdown
from andscale.reproduction.runs import run_all
from andscale.reproduction.tables import all_tables, table_named
from andscale.store.run_record import create_run
from golden import assert_golden

RECORD = {
    "table": "table6",
    "title": "One-off discovery and curriculum",
    "what": "Top-1 accuracy in percent after the last round",
    "scale": "smoke",
    "seeds": 2,
    "settings": [],
    "left_out": ["CIFAR-100: AND"],
    "rank_hours": 0.256,
    "rank": "process",
    "commits": ["abc"],
    "rows": [
        {
            "label": label,
            "values": {"kNN": values},
            "published": known,
            "stand_in": "digits",
            "runs": [
                {"run": f"runs/{label}-{s}", "seed": s, "config_hash": f"hash{s}", "training_ranks": [1]}
                for s in (0, 1)
            ],
        }
        for label, values, known in (("One-off", [80.0, 82.0], {}), ("Curriculum", [83.0, 84.0], {"kNN": [86.3, "S"]}))
    ],
}


def test_the_table_is_as_recorded():
    assert_golden("reproduced-table.md", markdown(RECORD, "python tools/reproduce.py table6 --scale smoke --seeds 2"))


def test_unlike_numbers_of_ranks_are_said():
    record = copy.deepcopy(RECORD)
    assert "ranks" not in markdown(record, "")
    record["rows"][1]["runs"][0]["training_ranks"] = [1, 4]
    said = "1 for One-off, seed 0; One-off, seed 1; Curriculum, seed 1. 1 and 4 for Curriculum, seed 0"
    assert f"batch norm sees a rank's share of a batch, so this changes results beside the settings): {said}\n" in (
        markdown(record, "")
    )


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", all_tables())
def test_every_arm_and_seed_is_a_run_of_its_own_whose_round_0_is_trained_once(name, scale):
    plan = Plan(table_named(name), scale, 2)
    runs = planned_runs(plan)
    assert len({(run.root, run.seed) for run in runs}) == len(runs)
    trained = [initialisation_digest(run.config) for run in runs if run.donor is None]
    assert len(trained) == len(set(trained)) == len({initialisation_digest(run.config) for run in runs})
    for run in runs:
        assert run.donor is None or run.donor in {other.root for other in runs if other.donor is None}
        assert run.config.seed == run.seed


def test_neighbourhood_sizes_share_one_round_0_and_the_images_are_counted_so(digits):
    plan = Plan(table_named("figure4"), "smoke", 1, (f"data.dataset={digits.root}", "data.max_train_samples=143"))
    runs = planned_runs(plan)
    assert [run.donor for run in runs] == [None, *[runs[0].root] * 5]
    # R = 2, 4 epochs a round: 3 rounds of the first, 2 of the others
    assert f"{143 * 4 * (3 + 5 * 2):,} images to train on" in describe_plan(plan)


def test_tables_share_runs_of_the_same_settings():
    roots = [{run.root for run in planned_runs(Plan(table_named(n), "full", 1))} for n in ("table6", "figure5")]
    assert roots[0] < roots[1]


def test_baselines_train_as_many_rounds_as_the_method():
    for run in planned_runs(Plan(table_named("table1"), "full", 1)):
        assert run.config.method.last_round == (0 if run.config.method.name == "random" else 4)


def test_a_data_set_that_is_not_prepared_is_named_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"not prepared: data/cub200, data/dogs; run .*cub200 FOLDER data/cub200; "):
        run_all(Plan(table_named("table3"), "full", 1))
    assert not list(tmp_path.iterdir())


def test_no_half_table_is_made_of_runs_that_are_not_complete(tmp_path, digits):
    plan = Plan(table_named("table6"), "smoke", 1, (f"data.dataset={digits.root}",), root=tmp_path)
    with pytest.raises(RunError, match="is not complete"):
        collect(plan)


def test_runs_that_are_done_are_left_and_the_others_take_over_round_0_and_go_on(tmp_path, monkeypatch, digits):
    plan = Plan(table_named("figure5"), "smoke", 1, (f"data.dataset={digits.root}",), root=tmp_path)
    monkeypatch.setattr(running, "_prepare_stand_ins", lambda runs: None)
    runs, calls = planned_runs(plan), []
    done = {runs[0].root}
    monkeypatch.setattr(running, "is_complete", lambda run: run.root in done)
    monkeypatch.setattr(running, "_has_round_0", lambda root: root in done)
    monkeypatch.setattr(running, "adopt_initialisation", lambda donor, request: calls.append((donor, request.run)))

    def launch(request):
        calls.append(request.run)
        if len(calls) == 4:
            raise KeyboardInterrupt
        done.add(request.run)

    monkeypatch.setattr(running, "launch", launch)
    with pytest.raises(KeyboardInterrupt):
        run_all(plan)
    assert calls == [(runs[0].root, runs[1].root), runs[1].root, (runs[0].root, runs[2].root), runs[2].root]
    assert run_all(plan) == []
    assert calls[4:] == [x for run in runs[2:] for x in ((runs[0].root, run.root), run.root)]


def test_a_round_0_of_another_tables_run_is_taken_over_too(tmp_path, monkeypatch, digits):
    plan = Plan(table_named("table6"), "smoke", 1, (f"data.dataset={digits.root}",), root=tmp_path)
    one_off, curriculum = planned_runs(plan)
    create_run(curriculum.root, curriculum.config, digits.root, digits.fingerprint)
    assert running._trained_donor(one_off, tmp_path) is None
    monkeypatch.setattr(running, "_has_round_0", lambda root: root == curriculum.root)
    assert running._trained_donor(one_off, tmp_path) == curriculum.root
    assert running._trained_donor(curriculum, tmp_path) is None


def test_images_are_counted_from_the_published_numbers_where_nothing_is_prepared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # one-off: rounds 0 and 1; the curriculum: rounds 1 to 4
    assert f"{50_000 * 200 * 6:,} images to train on" in describe_plan(Plan(table_named("table6"), "full", 1))


def test_a_data_set_on_a_server_is_not_called_unprepared(monkeypatch, digits):
    monkeypatch.setattr("andscale.data.shards.open_dataset", lambda place: digits)
    plan = Plan(table_named("table6"), "full", 1, ("data.dataset=https://example.org/cifar10",))
    assert describe_plan(plan).endswith("images to train on, with repetition")


def test_what_waits_for_a_round_0_is_said_and_not_launched(tmp_path, monkeypatch, capsys, digits):
    plan = Plan(table_named("table6"), "smoke", 1, (f"data.dataset={digits.root}",), root=tmp_path)
    monkeypatch.setattr(running, "launch", lambda request: None)  # as Slurm: submitted, not done
    runs = planned_runs(plan)
    assert [run.root for run in run_all(plan)] == [run.root for run in runs]
    assert f"waits for round 0 of {runs[0].root}" in capsys.readouterr().out
