"""What TensorBoard itself reads from the event files."""

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from andscale.audit import round_events
from andscale.audit.purity import inspect_round
from andscale.distributed import World
from andscale.event_log import EventLog
from andscale.metrics import MetricsLog, read_metrics
from andscale.orchestration.jobs import run_step
from andscale.orchestration.steps import Step
from andscale.training.stopping import StopSignals
from tiny_runs import start_run


def read(folder):
    """TensorBoard's own reader, all records kept."""
    found = EventAccumulator(str(folder), size_guidance=dict.fromkeys(("scalars", "images", "histograms"), 0))
    found.Reload()
    return found


def scalars(folder, tag):
    return {event.step: pytest.approx(event.value) for event in read(folder).Scalars(tag)}


@pytest.fixture(scope="module")
def run(tmp_path_factory, digits):
    layout = start_run(tmp_path_factory.mktemp("run") / "tiny", digits)
    for step in (Step("train", 0), Step("index", 1), Step("train", 1), Step("evaluate", 1)):
        run_step(layout.root, step, World(), StopSignals(), None)
    return layout


def test_each_rounds_epochs_are_a_line_of_their_own(run):
    for number in (0, 1):
        epochs = read_metrics(run.round(number).metrics)
        folder = run.events(f"{number:02d}")
        assert len(epochs) == 2
        for name in ("loss", "learning_rate", "images_per_s", "data_wait_fraction"):
            assert scalars(folder, f"training/{name}") == {r["epoch"]: r[name] for r in epochs}
        assert "training/round" not in read(folder).Tags()["scalars"]


def test_a_round_shows_purity_entropies_anchors_and_accuracy(run):
    folder = run.events("rounds")
    groups = {group["name"]: group for group in inspect_round(run.root, 1)["groups"]}
    assert scalars(folder, "neighbourhoods/purity_at_1_of_all") == {1: groups["all"]["purity_at_1"]}
    assert scalars(folder, "neighbourhoods/purity_at_1_of_anchors") == {1: groups["anchors"]["purity_at_1"]}
    assert scalars(folder, "neighbourhoods/num_anchors") == {1: groups["anchors"]["num_samples"]}
    assert list(scalars(folder, "evaluation/knn_accuracy")) == [1]
    (histogram,) = read(folder).Histograms("neighbourhoods/entropy_nats")
    assert histogram.histogram_value.num == 143
    (image,) = read(folder).Images("neighbourhoods/most_certain_anchors")
    assert image.encoded_image_string.startswith(b"\x89PNG")
    assert (image.width, image.height) == (576, 576)


def test_the_grid_holds_the_most_certain_anchors_before_their_neighbours(run):
    subject = round_events.open_subject(run.root, 1)
    order = np.argsort(np.where(subject.table.is_anchor, subject.table.entropies, np.inf), kind="stable")
    grid = round_events.anchor_grid(subject)

    def tile(place):
        top, left = 96 * (place // 6), 96 * (place % 6)
        return grid[top : top + 94, left : left + 94]

    from PIL import Image

    from andscale.data.images import decode_rgb
    from andscale.data.samples import Shards

    shards = Shards(subject.catalogue)
    for place, sample_id in ((0, order[0]), (1, subject.table.neighbour_ids[order[0], 0]), (34, order[17])):
        expected = Image.fromarray(decode_rgb(shards.take(int(sample_id)))).resize((94, 94))
        np.testing.assert_array_equal(tile(place), np.asarray(expected))


def test_an_epoch_that_is_trained_again_replaces_what_was_written_of_it(tmp_path):
    events = EventLog(tmp_path / "events")
    log = MetricsLog(tmp_path / "metrics.jsonl", events)
    for epoch in range(4):
        log.write(round=0, epoch=epoch, loss=float(epoch))
    log.drop_after(2)
    log.write(round=0, epoch=2, loss=12.0)
    assert scalars(tmp_path / "events", "training/loss") == {0: 0.0, 1: 1.0, 2: 12.0}


def test_a_record_that_a_kill_cut_does_not_hide_those_before_it(tmp_path):
    events = EventLog(tmp_path)
    events.scalars({"a": 1.0}, 0)
    events.scalars({"a": 2.0}, 1)
    events.path.write_bytes(events.path.read_bytes()[:-3])
    assert scalars(tmp_path, "a") == {0: 1.0}


def test_without_tensorboard_and_on_other_ranks_nothing_is_written(tmp_path, monkeypatch):
    EventLog(tmp_path / "rank", enabled=False).scalars({"a": 1.0}, 0)
    monkeypatch.setattr("andscale.event_log.find_spec", lambda name: None)
    EventLog(tmp_path / "absent").scalars({"a": 1.0}, 0)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_shown_is_said_and_does_not_undo_the_step(run, capsys, monkeypatch):
    monkeypatch.setattr(round_events, "anchor_grid", lambda subject: (run.root / "gone").read_bytes())
    round_events.write_index_events(run.root, 1)
    assert capsys.readouterr().err.startswith("nothing for TensorBoard: [Errno 2]")
