"""--rebuild: what is damaged or stale is moved aside and made again, and only then."""

import json
import re
import shutil

import pytest

from andscale.errors import RunError
from andscale.orchestration import follow, local
from andscale.orchestration import launch as launching
from andscale.orchestration.launch import LaunchRequest, launch
from andscale.orchestration.steps import Step, outputs
from andscale.store import artifacts
from andscale.store.run_layout import RunLayout
from fake_slurm import FakeSlurm
from tiny_runs import start_run

PARENTS = {"index": ["memory"], "train": ["neighbourhoods"], "evaluate": ["model"]}


def make(layout, step, text):
    """Publish a step as its job would: made from what is there now."""
    parents = {}
    for name in PARENTS[step.kind]:
        number = step.round_number - (step.kind == "index")
        folder = layout.root / f"rounds/{number:02d}/{name}"
        if artifacts.is_complete(folder):
            parents[f"rounds/{number:02d}/{name}"] = artifacts.load_manifest(folder, name).digest
    for name, kind in outputs(layout, step).items():
        if artifacts.is_complete(layout.root / name):
            continue
        provenance = artifacts.Provenance("c", parents)
        with artifacts.publish(layout.root / name, kind=kind, provenance=provenance) as draft:
            draft.path("content.bin").write_text(f"{name} {text}")
            draft.add("content.bin")
            if kind == "evaluation":
                draft.path("evaluation.json").write_text('{"accuracy": 0.5}')
                draft.add("evaluation.json")


@pytest.fixture
def made(monkeypatch):
    """The steps that a launch on this machine made; ``text`` is what new artefacts hold."""
    calls = {"steps": [], "text": "first"}

    def run_here(layout, steps, config):
        for step in steps:
            calls["steps"].append(str(step))
            make(layout, step, calls["text"])

    monkeypatch.setattr(local, "run_steps", run_here)
    monkeypatch.setattr(launching, "_report", lambda *_: None)
    return calls


@pytest.fixture
def run(tmp_path, digits, made):
    layout = start_run(tmp_path / "run", digits)
    launch(LaunchRequest(layout.root, range(2), cluster="local"))
    assert len(made["steps"]) == 5
    made["steps"].clear()
    return layout


def launch_here(layout, rounds=range(2), **more):
    launch(LaunchRequest(layout.root, rounds, cluster="local", **more))


def lose(folder):
    (folder / "content.bin").unlink()


def truncate(folder):
    (folder / "content.bin").write_text("x")


def flip(folder):
    path = folder / "content.bin"
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)


def lose_manifest(folder):
    (folder / "manifest.json").unlink()


def spoil_manifest(folder):
    (folder / "manifest.json").write_text("{")


KINDS = ["memory", "model", "neighbourhoods", "index", "evaluation"]


@pytest.mark.parametrize("harm", [lose, truncate, spoil_manifest])
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_artefact_is_named_and_refused_and_made_again_when_the_user_says_so(run, made, kind, harm):
    folder = run.round(1).root / kind
    harm(folder)
    before = sorted(path for path in run.root.rglob("*") if "launcher" not in path.parts)
    with pytest.raises(RunError, match=f"{kind}/.*: launch round 1 with --rebuild to move it aside and make it again"):
        launch_here(run)
    with pytest.raises(RunError, match="--rebuild"):
        launch_here(run, rounds=None)
    assert sorted(path for path in run.root.rglob("*") if "launcher" not in path.parts) == before
    assert made["steps"] == []
    launch_here(run, rebuild=True)
    step = {"memory": "train", "model": "train", "evaluation": "evaluate"}.get(kind, "index")
    assert made["steps"] == [f"{step} round 1"], "made of the same bits, so nothing after it is stale"
    assert artifacts.verify(folder, kind)
    (aside,) = run.round(1).root.glob(f".damaged-{kind}-*")
    assert (aside / "manifest.json").exists(), "moved, never deleted"
    launch_here(run)


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_byte_is_found_by_rebuild(run, made, kind):
    flip(run.round(1).root / kind)
    launch_here(run, rebuild=True)
    assert len(made["steps"]) == 1
    assert artifacts.verify(run.round(1).root / kind, kind)


def test_a_folder_whose_manifest_is_gone_is_not_in_the_way_of_a_rebuild(run, made):
    lose_manifest(run.round(1).evaluation)
    with pytest.raises(RunError, match="evaluation has no manifest.json.*--rebuild"):
        launch_here(run)
    launch_here(run, rebuild=True)
    assert made["steps"] == ["evaluate round 1"]


def test_what_follows_from_an_artefact_that_came_out_different_is_made_again_too(run, made):
    lose(run.round(0).memory)
    made["text"] = "second"
    launch_here(run, rebuild=True)
    assert made["steps"] == [
        "train round 0", "evaluate round 0", "index round 1", "train round 1", "evaluate round 1",
    ]  # fmt: skip
    launch_here(run)
    assert len(made["steps"]) == 5


def test_only_the_asked_rounds_are_looked_at(run, made):
    lose(run.round(0).evaluation)
    launch_here(run, rounds=range(1, 2), rebuild=True)
    assert made["steps"] == []


def test_without_rounds_all_that_have_been_launched_are_looked_at(run, made):
    spoil_manifest(run.round(0).evaluation)
    flip(run.round(1).evaluation)
    launch_here(run, rounds=None, rebuild=True)
    assert made["steps"] == ["evaluate round 0", "evaluate round 1"]


def test_a_healthy_run_is_left_as_it_is_by_a_rebuild(run, made):
    launch_here(run, rebuild=True)
    assert made["steps"] == []
    assert not list(run.root.rglob(".damaged-*"))


def test_a_stale_step_is_refused_without_rebuild_and_made_again_with_it(run, made):
    shutil.rmtree(run.round(0).memory)
    made["text"] = "second"
    launch_here(run, rounds=range(1))
    with pytest.raises(RunError, match="index round 1 of .* was made from another rounds/00/memory .*--rebuild"):
        launch_here(run)
    made["steps"].clear()
    launch_here(run, rebuild=True)
    assert made["steps"] == ["index round 1", "train round 1", "evaluate round 1"]


def test_a_dry_run_says_what_would_be_moved_and_moves_nothing(run, made, capsys):
    flip(run.round(1).model)
    launch_here(run, rebuild=True, dry_run=True)
    said = capsys.readouterr().out
    assert "train round 1 would be moved aside and made again: " in said
    assert "content.bin does not have the hash of its record" in said
    assert "1 steps on this machine\n  train round 1" in said
    assert not list(run.root.rglob(".damaged-*"))


def test_on_slurm_the_damaged_step_is_submitted_and_the_user_told_to_come_again(run, tmp_path, monkeypatch, capsys):
    slurm = FakeSlurm(tmp_path / "slurm", monkeypatch)
    lose(run.round(0).memory)
    launch(LaunchRequest(run.root, range(2), cluster="slurm", rebuild=True))
    assert list(slurm.ids()) == ["train:0"]
    assert "launch with --rebuild again" in capsys.readouterr().out
    assert json.loads((RunLayout(run.root).round(0).job_record("train")).read_text())["job_id"] == "101"


def test_following_a_rebuild_on_slurm_submits_what_became_stale_until_nothing_is(run, made, tmp_path, monkeypatch):
    slurm = FakeSlurm(tmp_path / "slurm", monkeypatch)

    def all_jobs_end_well(_):
        for name, job_id in slurm.ids().items():
            kind, number = name.split(":")
            make(run, Step(kind, int(number)), "second")
            slurm.end(job_id)

    monkeypatch.setattr(follow.time, "sleep", all_jobs_end_well)
    lose(run.round(0).memory)
    launch(LaunchRequest(run.root, range(2), cluster="slurm", rebuild=True, follow=True))
    submitted = [path.read_text() for path in sorted((slurm.root / "scripts").iterdir())]
    names = [re.search("--job-name=andscale-run-(.*)", script)[1] for script in submitted]
    assert names == ["train-0", "evaluate-0", "index-1", "train-1", "evaluate-1"]
