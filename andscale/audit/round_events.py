"""A round's purity, entropies, anchors and accuracy for TensorBoard; steps are rounds."""

import sys
from pathlib import Path

import numpy as np

from andscale.audit.purity import purity_groups
from andscale.audit.subject import Subject, open_subject
from andscale.data.images import open_rgb
from andscale.data.samples import Shards
from andscale.errors import AndscaleError
from andscale.evaluation.record import read_evaluation
from andscale.event_log import EventLog
from andscale.store.run_layout import RunLayout

_LINE = "rounds"
_GRID, _TILE = 6, 96


def write_index_events(run: Path, round_number: int) -> None:
    """After an index step: purity of all and of the anchors, entropies, and images of the most certain anchors.

    The step is done when this is called, so what goes wrong here is said and does not undo it.
    """
    log = EventLog(RunLayout(run).events(_LINE))
    if not log.enabled:
        return
    try:
        subject = open_subject(run, round_number)
        labels = subject.audit_labels if subject.is_labelled else None
        groups = {group.name: group for group in purity_groups(subject.table, labels)}
        figures = {"neighbourhoods/num_anchors": float(subject.table.is_anchor.sum())}
        for name in ("all", "anchors"):
            if name in groups:
                found = {"purity_at_1": groups[name].purity_at_1, "purity_at_k": groups[name].purity_at_k}
                figures |= {f"neighbourhoods/{key}_of_{name}": v for key, v in found.items() if v is not None}
                figures[f"neighbourhoods/median_entropy_nats_of_{name}"] = groups[name].entropy_nats[1]
        log.scalars(figures, round_number)
        log.histogram("neighbourhoods/entropy_nats", subject.table.entropies, round_number)
        if subject.catalogue is not None and subject.dataset is not None and not subject.dataset.url:
            log.image("neighbourhoods/most_certain_anchors", anchor_grid(subject), round_number)
    except (AndscaleError, OSError) as error:
        print(f"nothing for TensorBoard: {error}", file=sys.stderr, flush=True)


def write_evaluation_events(run: Path, round_number: int) -> None:
    """After an evaluation step: its accuracies."""
    layout = RunLayout(run)
    log = EventLog(layout.events(_LINE))
    if not log.enabled:
        return
    try:
        evaluation, _ = read_evaluation(layout.round(round_number).evaluation)
        figures = {"evaluation/knn_accuracy": evaluation["accuracy"]}
        figures |= {
            f"evaluation/linear_{name}": record["top1"] for name, record in (evaluation["linear"] or {}).items()
        }
        log.scalars(figures, round_number)
    except (AndscaleError, OSError) as error:
        print(f"nothing for TensorBoard: {error}", file=sys.stderr, flush=True)


def anchor_grid(subject: Subject) -> np.ndarray:
    """The anchors of lowest entropy, row by row, each before its nearest neighbour.

    Returns:
        (H, W, 3) uint8; without anchors, the samples of lowest entropy.
    """
    assert subject.catalogue is not None
    table, shards = subject.table, Shards(subject.catalogue)
    candidates = np.flatnonzero(table.is_anchor) if table.is_anchor.any() else np.arange(len(table))
    chosen = candidates[np.argsort(table.entropies[candidates], kind="stable")][: _GRID * _GRID // 2]
    pairs = np.stack([chosen, table.neighbour_ids[chosen, 0]], axis=1).ravel()
    grid = np.full((-(-len(pairs) // _GRID) * _TILE, _GRID * _TILE, 3), 255, np.uint8)
    for place, sample_id in enumerate(pairs.tolist()):
        image = open_rgb(shards.take(sample_id))
        scale = (_TILE - 2) / max(image.size)
        tile = np.asarray(image.resize([max(1, round(side * scale)) for side in image.size]))
        top, left = _TILE * (place // _GRID), _TILE * (place % _GRID)
        grid[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return grid
