import json
import shutil

import pytest

from andscale.config import MethodConfig
from andscale.errors import RunError, UsageError
from andscale.orchestration.steps import Step, is_done, next_round, outputs, parse_rounds, pending_steps, steps_of_round
from andscale.store import artifacts
from andscale.store.run_layout import RunLayout

AND = MethodConfig()


def _do(layout, step, parents=None):
    """Publish what a step publishes."""
    for name, kind in outputs(layout, step).items():
        folder = layout.root / name
        provenance = artifacts.Provenance("c", parents or {})
        with artifacts.publish(folder, kind=kind, provenance=provenance) as draft:
            draft.path("x").write_text(name)
            draft.add("x")


@pytest.fixture
def layout(tmp_path):
    return RunLayout(tmp_path)


def test_round_0_has_nothing_to_index():
    assert [s.kind for s in steps_of_round(0, AND)] == ["train", "evaluate"]
    assert [s.kind for s in steps_of_round(3, AND)] == ["index", "train", "evaluate"]


@pytest.mark.parametrize("name", ["instance", "supervised"])
def test_baselines_that_train_have_no_index_steps_and_wait_for_none(layout, name):
    method = MethodConfig(name=name)
    assert [str(s) for s in pending_steps(layout, range(2), method)] == [
        "train round 0", "evaluate round 0", "train round 1", "evaluate round 1",
    ]  # fmt: skip
    for kind in ("train", "evaluate"):
        _do(layout, Step(kind, 0))
    assert next_round(layout, method) == 1
    assert pending_steps(layout, range(1, 2), method) == [Step("train", 1), Step("evaluate", 1)]


def test_what_is_next_follows_from_the_disk_alone(layout):
    assert next_round(layout, AND) == 0
    assert pending_steps(layout, range(2), AND) == [*steps_of_round(0, AND), *steps_of_round(1, AND)]
    _do(layout, Step("train", 0))
    assert pending_steps(layout, range(2), AND) == [Step("evaluate", 0), *steps_of_round(1, AND)]
    _do(layout, Step("evaluate", 0))
    assert next_round(layout, AND) == 1
    assert pending_steps(layout, range(1), AND) == []


def test_a_step_of_two_artefacts_is_done_when_both_are(layout):
    _do(layout, Step("train", 0))
    (layout.round(0).memory / "manifest.json").unlink()
    assert not is_done(layout, Step("train", 0))


def test_a_round_without_its_predecessor_is_refused(layout):
    with pytest.raises(UsageError, match="round 1 has no memory: run --round 1 first"):
        pending_steps(layout, range(2, 3), AND)
    assert len(pending_steps(layout, range(3), AND)) == 8


def test_an_artefact_of_another_parent_is_stale(layout):
    _do(layout, Step("train", 0))
    digest = artifacts.load_manifest(layout.round(0).memory, "memory").digest
    _do(layout, Step("index", 1), {"rounds/00/memory": digest, "dataset": "0" * 64})
    assert is_done(layout, Step("index", 1))
    path = layout.round(0).memory / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"parents": {"dataset": "x"}}))
    with pytest.raises(RunError, match="was made from another rounds/00/memory than the one that is there now: launch"):
        is_done(layout, Step("index", 1))


def test_an_artefact_made_again_with_the_same_content_is_not_another_parent(layout):
    _do(layout, Step("train", 0))
    digest = artifacts.load_manifest(layout.round(0).memory, "memory").digest
    _do(layout, Step("index", 1), {"rounds/00/memory": digest})
    shutil.rmtree(layout.round(0).memory)
    shutil.rmtree(layout.round(0).model)
    _do(layout, Step("train", 0))
    assert is_done(layout, Step("index", 1))


@pytest.mark.parametrize(("text", "expected"), [("0-4", range(5)), ("2", range(2, 3)), ("3-3", range(3, 4))])
def test_rounds_include_both_ends(text, expected):
    assert parse_rounds(text) == expected


@pytest.mark.parametrize("text", ["", "-", "a-b", "1-", "-1", "3-2", "1.5"])
def test_malformed_rounds_are_refused(text):
    with pytest.raises(UsageError, match="--rounds"):
        parse_rounds(text)
