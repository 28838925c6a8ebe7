"""Curves over rounds: equal epochs, the same seeds, differences by hand."""

import pytest

from andscale.reproduction.curves import curves_markdown, difference, epochs_until
from andscale.reproduction.plan import Plan, planned_runs
from andscale.reproduction.tables import table_named


def row(label, **rounds):
    return {"label": label, "rounds": [{"epochs": int(e[1:]), "values": {"kNN": v}} for e, v in rounds.items()]}


ROWS = [
    row("Random", e0=[60.0, 62.0]),
    row("Instance", e0=[61.0, 61.0], e2=[70.0, 74.0], e4=[72.0, 75.0]),
    row("AND", e2=[71.0, 74.5], e4=[73.0, 77.0]),
    row("NAT", e2=[66.0]),
]


def test_a_difference_is_taken_seed_by_seed_after_the_same_epochs():
    assert difference([(2, [71.0, 74.5]), (6, [1.0, 1.0])], [(0, [0.0, 0.0]), (2, [70.0, 74.0])]) == [(2, [1.0, 0.5])]


def test_every_row_stands_under_the_epochs_that_it_has():
    assert curves_markdown(ROWS, "kNN", ("AND", "Instance")) == [
        "| kNN, after epochs | 0 | 2 | 4 |",
        "| --- | ---: | ---: | ---: |",
        "| Random | 61.00 ± 1.41 |  |  |",
        "| Instance | 61.00 ± 0.00 | 72.00 ± 2.83 | 73.50 ± 2.12 |",
        "| AND |  | 72.75 ± 2.47 | 75.00 ± 2.83 |",
        "| NAT |  | 66.00 |  |",
        "| AND - Instance |  | +0.75 ± 0.35 | +1.50 ± 0.71 |",
    ]


@pytest.mark.parametrize(("name", "epochs"), [("random", 0), ("instance", 4), ("and", 4)])
def test_epochs_are_counted_over_the_rounds_that_train(name, epochs):
    settings = ("method.num_rounds=1", "optim.num_epochs=2")
    runs = planned_runs(Plan(table_named("fashion_mnist"), "smoke", 1, settings))
    (run,) = (run for run in runs if run.config.method.name == name)
    assert epochs_until(run, run.config.method.last_round) == epochs


def test_rows_of_unequal_seeds_are_not_compared():
    with pytest.raises(ValueError, match="shorter"):
        difference([(2, [71.0, 74.5])], [(2, [70.0])])
