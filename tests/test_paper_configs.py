"""configs/: a file for each row of the paper, whose head says how to run it and what to expect, and is right."""

import re
import shlex
from pathlib import Path

import pytest

from andscale.config_file import load_config
from andscale.data.published import PUBLISHED
from andscale.data.sources import SOURCES
from andscale.orchestration.slurm import sbatch_script
from andscale.orchestration.steps import Step
from andscale.store.run_layout import RunLayout

FOLDER = Path(__file__).resolve().parents[1] / "configs"
PAPER = sorted(path for path in FOLDER.glob("*.toml") if not path.stem.endswith(("_demo", "_comparison")))
ROWS = {
    *((source, network) for source in ("cifar10", "cifar100", "svhn") for network in ("alexnet", "resnet18")),
    ("cifar10", "resnet101"),
    ("imagenet", "alexnet"),
    ("imagenet", "resnet18"),
    ("cub200", "resnet18"),
    ("dogs", "resnet18"),
}
paper_configs = pytest.mark.parametrize("path", PAPER, ids=lambda p: p.stem)


def head(path):
    """The comments before the first setting, as label -> text; a text goes on where a line begins with spaces."""
    texts, label = {}, "Title"
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        match = re.fullmatch(r"# (?:(\w+):)?( *)(.*)", line)
        label = match[1] or (label if match[2] else "Note")
        texts.setdefault(label, []).append(match[3])
    return {label: "\n".join(lines) for label, lines in texts.items()}


def commands(text):
    """Every command of a head, its loop written out."""
    loop = re.search(r"^for (\w+) in (.*); do$", text, re.MULTILINE)
    for line in text.replace("\\\n", " ").splitlines():
        if line == "done" or line.startswith("for "):
            continue
        values = loop[2].split() if loop and f"${loop[1]}" in line else [""]
        for value in values:
            yield shlex.split(line.replace(f"${loop[1]}", value) if value else line)


def test_every_row_of_the_paper_has_its_file():
    for source, network in ROWS:
        config = load_config(FOLDER / f"{source}_{network}.toml")
        assert (config.data.dataset, config.model.backbone) == (f"data/{source}", network)
        assert config.model.stem == ("imagenet" if source in ("imagenet", "cub200", "dogs") else "small")
        assert config.optim.global_batch_size == (256 if source == "imagenet" else 128)
        assert (config.optim.num_epochs, config.method.num_rounds, config.method.num_neighbours) == (200, 4, 1)
        assert (config.evaluation.linear_epochs > 0) == (network == "alexnet")


@paper_configs
def test_the_commands_of_a_head_are_of_its_file_and_run_all_its_rounds(path):
    runs = set()
    for words in commands(head(path)["Command"]):
        assert words[:2] == ["python", "jobs/launch_round.py"]
        options = [(words[i], words[i + 1]) for i in range(2, len(words), 2)]
        values = dict(options)
        assert values.keys() <= {"--rounds", "--config", "--run", "--set"}
        assert values["--config"] == f"configs/{path.name}"
        config = load_config(path, [value for option, value in options if option == "--set"])
        assert values["--rounds"] == f"0-{config.method.num_rounds}"
        runs.add((values.get("--run", f"runs/{path.stem}"), config.digest()))
    # no two commands share a run, and none repeats another one's settings
    assert len({run for run, _ in runs}) == len({digest for _, digest in runs}) == len(runs)


@paper_configs
def test_what_a_head_expects_follows_from_its_settings(path):
    config, text = load_config(path), head(path)
    _, _, source, *folder, out = text["Prepare"].replace("python", "", 1).split(" ")
    assert (source, out) == (Path(config.data.dataset).name, config.data.dataset)
    assert source in SOURCES and folder == (["FOLDER"] if source in ("imagenet", "cub200", "dogs") else [])
    trainings = sum(config.method.trains(number) for number in range(config.method.num_rounds + 1))
    images = trainings * config.optim.num_epochs * PUBLISHED[source].train
    assert f"= {images:,} images / " in text["Expect"]
    assert f"{trainings} rounds" in text["Expect"]
    assert "hours" in text["Expect"]
    ranks = config.resources.num_nodes * config.resources.tasks_per_node
    assert text["Expect"].startswith(f"{ranks} GPU{'s' if ranks > 1 else ''}")
    assert bool(config.evaluation.linear_epochs) == ("classifiers" in text["Expect"])


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda p: p.stem)
def test_the_jobs_of_a_config_ask_slurm_for_the_gpus_that_its_head_names(path):
    wanted = re.search(r"^# Expect: +(\d+) GPU", path.read_text(), re.MULTILINE)
    for kind in ("index", "train", "evaluate"):
        script = sbatch_script(RunLayout(Path("runs/x")), Step(kind, 1), load_config(path), [])
        asked = re.findall(r"^#SBATCH --gpus-per-node=(\d+)$", script, re.MULTILINE)
        assert asked == ([wanted[1]] if wanted else ["0"]), kind


def test_ranks_that_decode_imagenet_get_cpus_for_it():
    for path in FOLDER.glob("imagenet_*.toml"):
        for kind in ("index", "train", "evaluate"):
            script = sbatch_script(RunLayout(Path("runs/x")), Step(kind, 1), load_config(path), [])
            assert "\n#SBATCH --cpus-per-task=8\n" in script, kind


@paper_configs
def test_a_published_number_names_its_table_or_is_said_to_be_missing(path):
    published = head(path)["Published"]
    assert published == "not at hand" or re.search(r"\d\d\.\d.*\(.* (table|figure) \d\)$", published.replace("\n", " "))
