import numpy as np
import pytest

from andscale.audit.purity import neighbour_agreement, purity_groups
from andscale.audit.tables import purity_table, render_table
from andscale.errors import UsageError
from andscale.store.neighbourhoods import NeighbourhoodTable

LABELS = np.array([0, 0, 1, 1, 2], np.int32)
TABLE = NeighbourhoodTable(
    neighbour_ids=np.array([[1, 2], [0, 2], [3, 0], [0, 2], [0, 1]]),
    similarities=np.float32([[0.9, 0.5], [0.8, 0.5], [0.7, 0.5], [0.6, 0.5], [0.5, 0.4]]),
    entropies=np.float32([1, 2, 3, 4, 5]),
    is_anchor=np.array([True, True, False, False, False]),
)


def test_agreement_compares_each_neighbour_with_the_sample():
    expected = [[True, False], [True, False], [True, False], [False, True], [False, False]]
    assert neighbour_agreement(TABLE.neighbour_ids, LABELS).tolist() == expected


def test_groups_count_their_own_samples():
    groups = {g.name: g for g in purity_groups(TABLE, LABELS)}
    assert groups["all"].purity_at_1 == pytest.approx(3 / 5)
    assert groups["all"].purity_at_k == pytest.approx(4 / 10)
    assert (groups["anchors"].num_samples, groups["anchors"].purity_at_1) == (2, 1.0)
    assert groups["instances"].purity_at_1 == pytest.approx(1 / 3)
    assert groups["instances"].entropy_nats == (3, 4, 5)
    assert groups["entropy tenth 1"].entropy_nats == (1, 1, 1)
    assert groups["all"].mean_similarity == pytest.approx(0.7)


def test_without_labels_there_is_no_purity_and_with_some_it_is_refused():
    assert {g.purity_at_1 for g in purity_groups(TABLE, None)} == {None}
    with pytest.raises(UsageError, match="needs a label for every sample"):
        neighbour_agreement(TABLE.neighbour_ids, np.array([0, 0, -1, 1, 2], np.int32))


def test_tables_are_aligned():
    assert render_table(["a", "bb"], [["long", "1"]]) == "a     bb\n----  --\nlong   1"


@pytest.mark.parametrize(("k", "columns"), [(1, ["purity@1"]), (2, ["purity@1", "purity@2"])])
def test_the_table_names_each_purity_once(k, columns):
    table = NeighbourhoodTable(TABLE.neighbour_ids[:, :k], TABLE.similarities[:, :k], TABLE.entropies, TABLE.is_anchor)
    groups = [vars(group) for group in purity_groups(table, LABELS)]
    inspected = {"run": "r", "round": 1, "num_samples": 5, "num_neighbours": k, "labelled": True, "groups": groups}
    header = purity_table(inspected).splitlines()[1].split()
    assert [word for word in header if word.startswith("purity")] == columns
