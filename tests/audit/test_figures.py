"""Figures of an audit against loops in plain Python."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from andscale.audit.graph_figures import (
    components,
    k_occurrence,
    largest_hubs,
    mutual_fraction,
    near_duplicates,
    neighbour_pairs,
    skewness,
)
from andscale.audit.label_figures import (
    confusion,
    consistent_anchors,
    most_confused,
    purity_by_class,
    selective_risk,
)
from andscale.audit.round_figures import kept_neighbours
from andscale.store.neighbourhoods import NeighbourhoodTable


@st.composite
def tables(draw):
    """A table of 2 to 30 samples with 1 to 4 neighbours, labels of 3 classes, and few distinct similarities."""
    count = draw(st.integers(5, 30))
    width = draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ids = np.stack([rng.permutation(np.delete(np.arange(count), i))[:width] for i in range(count)])
    similarities = -np.sort(-rng.integers(0, 10, (count, width)) / np.float32(10), axis=1)
    entropies = rng.integers(0, 6, count).astype(np.float32)
    table = NeighbourhoodTable(ids, similarities.astype(np.float32), entropies, rng.random(count) < 0.5)
    return table, rng.integers(0, 3, count).astype(np.int32)


def reachable(count, edges):
    """The smallest id that each sample can reach, by walking."""
    near = {i: {i} for i in range(count)}
    for a, b in edges:
        near[a].add(b)
        near[b].add(a)
    found = []
    for start in range(count):
        seen, waiting = {start}, [start]
        while waiting:
            new = near[waiting.pop()] - seen
            seen |= new
            waiting += new
        found.append(min(seen))
    return found


@settings(deadline=None)
@given(tables())
def test_the_graph_equals_its_loops(case):
    table, _ = case
    ids, count = table.neighbour_ids.tolist(), len(table)
    pairs = [(i, j) for i in range(count) for j in ids[i]]
    assert mutual_fraction(table.neighbour_ids) == pytest.approx(np.mean([i in ids[j] for i, j in pairs]))
    occurrence = [sum(i in row for row in ids) for i in range(count)]
    assert k_occurrence(table.neighbour_ids).tolist() == occurrence
    hubs = sorted(range(count), key=lambda i: (-occurrence[i], i))[:3]
    assert largest_hubs(np.array(occurrence), 3) == [(i, occurrence[i]) for i in hubs]
    assert components(count, neighbour_pairs(table.neighbour_ids)).tolist() == reachable(count, pairs)


@settings(deadline=None)
@given(tables(), st.sampled_from([0.05, 0.5, 0.85]))
def test_near_duplicates_are_groups_linked_by_similar_pairs(case, threshold):
    table, _ = case
    edges = [
        (i, int(j))
        for i in range(len(table))
        for j, s in zip(table.neighbour_ids[i], table.similarities[i], strict=True)
        if s >= threshold
    ]
    roots = reachable(len(table), edges)
    groups = [[i for i in range(len(table)) if roots[i] == root] for root in sorted(set(roots))]
    expected = sorted([g for g in groups if len(g) > 1], key=lambda g: (-len(g), g[0]))
    assert [group.tolist() for group in near_duplicates(table, threshold)] == expected


def test_a_long_chain_is_one_component():
    order = np.random.default_rng(0).permutation(2000)
    chain = np.stack([order[:-1], order[1:]], axis=1)
    assert (components(2001, chain) == np.r_[np.zeros(2000, int), 2000]).all()


@settings(deadline=None)
@given(tables())
def test_figures_of_labels_equal_their_loops(case):
    table, labels = case
    ids, count = table.neighbour_ids, len(table)
    right = np.array([labels[ids[i, 0]] == labels[i] for i in range(count)])
    for record in purity_by_class(table, labels, 3):
        mine = [i for i in range(count) if labels[i] == record.label]
        assert record.num_samples == len(mine)
        assert record.purity_at_1 == pytest.approx(np.mean([right[i] for i in mine]))
        assert record.purity_at_k == pytest.approx(np.mean([[labels[j] == labels[i] for j in ids[i]] for i in mine]))
    counts = np.zeros((3, 3), int)
    for i in range(count):
        counts[labels[i], labels[ids[i, 0]]] += 1
    assert (confusion(ids, labels, 3) == counts).all()
    pairs = most_confused(ids, labels, 6)
    found = [(-n, a, b) for a, b, n, _ in pairs]
    assert found == sorted((-counts[a, b], a, b) for a in range(3) for b in range(3) if a != b and counts[a, b])
    assert sum(n for *_, n, _ in pairs) == counts.sum() - np.trace(counts)
    assert all(a != b and share == counts[a, b] / counts[a].sum() for a, b, _, share in pairs)
    consistent = sum(all(labels[j] == labels[i] for j in ids[i]) for i in np.flatnonzero(table.is_anchor))
    assert consistent_anchors(table, labels) == (consistent, table.is_anchor.sum() - consistent)


@settings(deadline=None)
@given(tables())
def test_selective_risk_counts_ties_as_half_whatever_their_order(case):
    table, labels = case
    right = labels == labels[table.neighbour_ids[:, 0]]
    found = selective_risk(table.entropies, right)
    pairs = list(itertools.product(table.entropies[right], table.entropies[~right]))
    if pairs:
        assert found.auroc == pytest.approx(np.mean([(a < b) + (a == b) / 2 for a, b in pairs]))
    else:
        assert found.auroc is None
    assert found.risk[-1] == pytest.approx((~right).mean())
    for entropy in np.unique(table.entropies):
        chosen = table.entropies <= entropy
        assert found.risk[chosen.sum() - 1] == pytest.approx((~right[chosen]).mean())
    shuffled = np.random.default_rng(1).permutation(len(right))
    again = selective_risk(table.entropies[shuffled], right[shuffled])
    np.testing.assert_allclose(again.risk, found.risk)
    assert found.aurc == pytest.approx(found.risk.mean())


def test_a_hub_shows_as_skewness():
    assert skewness(np.full(10, 3)) == 0
    assert skewness(np.array([0, 0, 0, 8])) == pytest.approx(1.1547, abs=1e-4)
    assert skewness(np.array([8, 8, 8, 0])) < 0


def test_neighbours_are_kept_wherever_they_stand():
    now, before = np.array([[1, 2], [0, 2]]), np.array([[2, 1], [3, 4]])
    assert kept_neighbours(now, before).tolist() == [1.0, 0.0]
