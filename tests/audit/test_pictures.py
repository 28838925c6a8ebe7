"""Grad-CAM over the rounds and the 2-D map, of a run of two rounds."""

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from andscale.audit import maps, pictures
from andscale.audit.attention import attention_maps
from andscale.audit.maps import choose_points, first_rounds, write_map
from andscale.audit.subject import open_subject
from andscale.cli import call
from andscale.distributed import World
from andscale.errors import UsageError
from andscale.orchestration.jobs import run_step
from andscale.orchestration.steps import Step
from andscale.training.embedding import EmbeddingNetwork, Stages
from andscale.training.stopping import StopSignals
from tiny_runs import start_run


@pytest.fixture(scope="module")
def run(tmp_path_factory, digits):
    """Two trained rounds over 143 digits; read only."""
    layout = start_run(tmp_path_factory.mktemp("pictured") / "tiny", digits, data={"image_size": 32})
    for step in (Step("train", 0), Step("index", 1), Step("train", 1)):
        run_step(layout.root, step, World(), StopSignals(), None)
    return layout.root


class _Mean(torch.nn.Module):
    """(B, C, h, w) -> (B, C)."""

    def forward(self, x):
        return x.mean(dim=(2, 3))


def test_attention_lies_where_the_memory_feature_was_seen():
    """Channel 0 is bright above, channel 1 below: the memory feature says which of them counts."""
    network = EmbeddingNetwork(
        Stages([torch.nn.Conv2d(3, 2, 1, bias=False)], {"conv": 0}), _Mean(), torch.nn.Identity()
    )
    network.trunk[0].weight.data = torch.tensor([[1.0, 0, 0], [0, 1, 0]])[:, :, None, None]
    image = torch.zeros(1, 3, 8, 8)
    image[:, 0, :4], image[:, 1, 4:] = 1, 1
    above, below = (
        attention_maps(network.eval(), image, torch.tensor([memory]))[0] for memory in ([1.0, 0.0], [0.0, 1.0])
    )
    assert above.shape == (8, 8)
    assert above[:4].min() > 0.9
    assert above[4:].max() < 0.1
    assert below[4:].min() > 0.9
    assert below[:4].max() < 0.1


def test_a_network_without_places_is_refused():
    network = EmbeddingNetwork(Stages([torch.nn.Flatten()], {"flat": 0}), torch.nn.Identity(), torch.nn.Identity())
    with pytest.raises(UsageError, match="needs a convolutional one"):
        attention_maps(network, torch.zeros(1, 3, 2, 2), torch.zeros(1, 12))


def test_attention_has_a_row_for_each_image_and_a_column_for_each_round(run, tmp_path, capsys):
    sizes = []
    for ids in ("5", "5,0,142"):
        out = tmp_path / "attention.png"
        assert call("attention", ["--run", str(run), "--ids", ids, "--out", str(out)]) == 0
        sizes.append(Image.open(out).size)
    assert "3 images, rounds 0, 1" in capsys.readouterr().out
    assert sizes[0][0] == sizes[1][0]
    assert sizes[1][1] > 2 * sizes[0][1]


def test_the_map_is_the_same_again_and_colours_by_what_was_asked(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(maps, "MAX_POINTS", 100)
    found = {}
    for colour in ("label", "entropy", "anchor", "round"):
        for name in ("first.png", "second.png") if colour == "label" else ("first.png",):
            arguments = ["--run", str(run), "--round", "1", "--colour", colour, "--out", str(tmp_path / name)]
            assert call("map", arguments) == 0
        found[colour] = (tmp_path / "first.png").read_bytes()
        if colour == "label":
            assert found[colour] == (tmp_path / "second.png").read_bytes()
    assert f"round 1: 100 drawn of 143 samples by {colour}" in capsys.readouterr().out
    assert len(set(found.values())) == 4
    assert np.asarray(Image.open(tmp_path / "first.png").convert("RGB")).std() > 5


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        ("attention", ["--ids", "1,x", "--out", "a.png"], "sample ids with commas"),
        ("attention", ["--ids", "143", "--out", "a.png"], "no training image 143: their ids are 0 to 142"),
        ("attention", ["--ids", "-1", "--out", "a.png"], "no training image -1"),
        ("attention", ["--ids", "1", "--out", "a.jpg"], "must end in .png or .svg"),
        ("map", ["--out", "a.png", "--colour", "moon"], "choose one of label, entropy, anchor, round"),
        ("map", ["--out", "a.png", "--round", "7"], "round 7 has no neighbourhoods"),
        ("map", ["--out", "."], "must end in .png or .svg"),
    ],
)
def test_mistakes_get_one_line_and_write_nothing(run, tmp_path, monkeypatch, capsys, command, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert call(command, ["--run", str(run), *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_without_the_libraries_the_extra_is_named(run, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "find_spec", lambda name: None if name == "umap" else importlib.util.find_spec(name))
    with pytest.raises(UsageError, match=r"umap cannot be imported: install andscale\[maps\]"):
        write_map(run, 1, "label", tmp_path / "map.png")


def test_of_many_samples_the_same_ones_are_drawn_each_time():
    chosen = choose_points(70_000)
    assert len(chosen) == len(np.unique(chosen)) == 50_000
    assert np.array_equal(chosen, choose_points(70_000))
    assert np.array_equal(choose_points(50_000), np.arange(50_000))


def test_a_sample_is_an_anchor_since_the_first_round_that_chose_it(run, monkeypatch):
    subject = open_subject(run, 1)
    later = np.arange(143) < 20
    earlier = np.arange(143) % 2 == 0
    tables = {1: replace(subject.table, is_anchor=earlier), 2: replace(subject.table, is_anchor=later)}
    monkeypatch.setattr(maps, "rounds_with_tables", lambda _: [1, 2])
    monkeypatch.setattr(maps, "read_table", lambda folder: (tables[int(folder.parent.name)], None))
    second = replace(subject, round_number=2)
    assert first_rounds(second).tolist() == [1 if i % 2 == 0 else 2 if i < 20 else 0 for i in range(143)]
    assert first_rounds(subject).tolist() == [1 - i % 2 for i in range(143)]
