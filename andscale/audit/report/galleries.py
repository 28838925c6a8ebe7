"""Which samples the report shows, and what it says of each."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from andscale.audit.audit_text import shown
from andscale.audit.purity import neighbour_agreement
from andscale.audit.report.thumbnails import Thumbnail, Thumbnails
from andscale.audit.subject import Subject

_NUM_CARDS, _NUM_NEIGHBOURS = 16, 5
_NUM_GROUPS, _SHOWN_OF_GROUP = 12, 10
_KEY_LENGTH = 80
_SEED = 0


@dataclass(frozen=True)
class Item:
    """A sample as it is shown; ``is_other`` says of a neighbour that its class is another."""

    sample_id: int
    key: str
    class_name: str
    thumbnail: Thumbnail | None
    similarity: float | None = None
    is_other: bool = False


@dataclass(frozen=True)
class Card:
    """A sample with its nearest neighbours."""

    item: Item
    entropy: float
    is_anchor: bool
    note: str
    neighbours: list[Item]


@dataclass(frozen=True)
class Gallery:
    """Cards under one heading."""

    name: str
    title: str
    explanation: str
    cards: list[Card]


class Shown:
    """Items and cards of one subject."""

    def __init__(self, subject: Subject, thumbnails: Thumbnails):
        self.subject, self.thumbnails = subject, thumbnails

    def item(self, sample_id: int, similarity: float | None = None, is_other: bool = False) -> Item:
        """One sample."""
        subject = self.subject
        key = "" if subject.catalogue is None else shown(subject.catalogue.keys[sample_id], _KEY_LENGTH)
        label = -1 if subject.audit_labels is None else int(subject.audit_labels[sample_id])
        name = shown(subject.class_name(label), _KEY_LENGTH)
        return Item(sample_id, key, name, self.thumbnails(sample_id), similarity, is_other)

    def card(self, sample_id: int, note: str = "") -> Card:
        """One sample and its first neighbours."""
        table, labels = self.subject.table, self.subject.audit_labels
        neighbours = []
        for near, similarity in zip(
            table.neighbour_ids[sample_id, :_NUM_NEIGHBOURS].tolist(),
            table.similarities[sample_id].tolist(),
            strict=False,
        ):
            is_other = labels is not None and 0 <= labels[sample_id] != labels[near] >= 0
            neighbours.append(self.item(near, similarity, bool(is_other)))
        return Card(
            self.item(sample_id), float(table.entropies[sample_id]), bool(table.is_anchor[sample_id]), note, neighbours
        )


def galleries(subject: Subject, inspected: dict[str, Any], thumbnails: Thumbnails) -> list[Gallery]:
    """Most and least certain anchors (samples, where there are no anchors), impure ones, hubs, random samples."""
    table, show = subject.table, Shown(subject, thumbnails)
    anchors = np.flatnonzero(table.is_anchor)
    what = "anchors" if len(anchors) else "samples"
    chosen = anchors if len(anchors) else np.arange(len(table))
    order = chosen[np.argsort(table.entropies[chosen], kind="stable")]
    certain, uncertain = order[:_NUM_CARDS], order[::-1][:_NUM_CARDS]
    found = [
        Gallery("certain", f"Most certain {what}", "Lowest entropy first.", [show.card(i) for i in certain.tolist()]),
        Gallery(
            "uncertain", f"Least certain {what}", "Highest entropy first.", [show.card(i) for i in uncertain.tolist()]
        ),
    ]
    if subject.is_labelled and subject.audit_labels is not None:
        agreement = neighbour_agreement(table.neighbour_ids, subject.audit_labels)[order]
        impure = np.flatnonzero(~agreement.all(axis=1))
        width = table.num_neighbours
        cards = [
            show.card(int(order[place]), f"{width - int(agreement[place].sum())} of {width} of another class")
            for place in impure[:_NUM_CARDS].tolist()
        ]
        explanation = f"{len(impure):,} {what} have a neighbour of another class; the most certain of them first."
        found.append(Gallery("impure", f"Impure {what}", explanation, cards))
    hubs = inspected["graph"]["hubs"][:_NUM_CARDS]
    cards = [show.card(hub["sample_id"], f"a neighbour of {hub['k_occurrence']:,}") for hub in hubs]
    found.append(Gallery("hubs", "Largest hubs", "Samples that are most often among the neighbours of others.", cards))
    drawn = np.random.default_rng(_SEED).permutation(len(table))[:_NUM_CARDS]
    found.append(Gallery("random", "Random samples", "What is usual.", [show.card(i) for i in np.sort(drawn).tolist()]))
    return found


def duplicate_groups(subject: Subject, inspected: dict[str, Any], thumbnails: Thumbnails) -> list[list[Item]]:
    """The largest groups of near-duplicates, their first members."""
    show = Shown(subject, thumbnails)
    groups = inspected["near_duplicates"]["groups"][:_NUM_GROUPS]
    return [[show.item(i) for i in group[:_SHOWN_OF_GROUP]] for group in groups]
