"""--set of a whole table: what tells rows or seeds apart is refused, the rest goes to every run."""

import pytest

from andscale.errors import UsageError
from andscale.reproduction.plan import Plan, is_repeated, planned_runs
from andscale.reproduction.tables import Arm, Table, table_named


def plan(name, *overrides, scale="full", seeds=2):
    return Plan(table_named(name), scale, seeds, overrides)


@pytest.mark.parametrize(
    ("table", "override", "said"),
    [
        ("table6", "seed=5", r"--set seed: .* choose their number with --seeds"),
        ("table6", " seed = 5", r"--set seed: "),
        ("figure4", "method.num_neighbours=5", r"--set method.num_neighbours: row 'k = 1' of figure4 sets it itself"),
        ("figure4", "method={num_neighbours=5}", r"--set method: row 'k = 1' of figure4 sets it itself \(method.num"),
        ("n_ep", "optim.num_epochs=6", r"row 'N_ep = 50' of n_ep sets it itself"),
        ("fashion_mnist", "method.memory_start=features", r"row 'NAT' of fashion_mnist sets it itself"),
        ("table1", "data.dataset=/x", r"data/cifar10, data/cifar100, data/svhn.* make these links to them, or run in"),
        ("table1", 'data={dataset="/x"}', r"--set data: the rows of table1 have .*data/cifar10, data/cifar100, data"),
        ("table4", "model.backbone=resnet18", r"--set model.backbone: the rows of table4 have .*alexnet, resnet101"),
    ],
)
def test_what_tells_rows_or_seeds_apart_is_refused_in_one_line(table, override, said):
    with pytest.raises(UsageError, match=said) as refused:
        planned_runs(plan(table, override))
    assert "\n" not in str(refused.value)


def test_stand_ins_that_differ_are_not_replaced_by_one_data_set():
    with pytest.raises(UsageError, match=r"data/digits, data/fashion-mnist"):
        planned_runs(plan("table1", "data.dataset=/x", scale="smoke"))


@pytest.mark.parametrize(
    ("table", "overrides"),
    [
        ("table1", ("optim.num_epochs=6", "resources.tasks_per_node=2", "slurm.partition=gpu")),
        ("table1", ("model.backbone=resnet18",)),
        ("table6", ("data.dataset=/x",)),
        ("figure4", ("evaluation.num_neighbours=50",)),
    ],
)
def test_a_setting_of_all_rows_leaves_as_many_runs_as_there_were(table, overrides):
    runs, changed = planned_runs(plan(table)), planned_runs(plan(table, *overrides))
    assert len({run.root for run in changed}) == len({run.root for run in runs}) == len(runs)


def test_two_rows_that_overrides_make_one_run_are_refused():
    # the two configs differ in this setting alone
    table = Table(
        "two", "Two", (), (Arm("Instance", "cifar10_resnet18"), Arm("Random", "cifar10_random_initialisation"))
    )
    assert len({run.root for run in planned_runs(Plan(table, seeds=1))}) == 2
    with pytest.raises(UsageError, match=r"--set .*: 'Instance', seed 0, and 'Random', seed 0, would be one run"):
        planned_runs(Plan(table, seeds=1, overrides=("method.initialisation=random",)))


def test_rows_that_are_one_run_by_themselves_stay_one():
    table = Table("two", "Two", (), (Arm("One", "digits_demo"), Arm("Other", "digits_demo")))
    runs = planned_runs(Plan(table, "full", 2, ("optim.num_epochs=6",)))
    assert [is_repeated(runs, place) for place in range(4)] == [False, True, False, True]
