import json
import os
import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import reference
from golden import assert_golden

ROOT = Path(__file__).resolve().parents[1]
DOORS = sorted([*(ROOT / "jobs").glob("*.py"), *(ROOT / "tools").glob("*.py")])


def run(*command, cwd=ROOT, env=None):
    return subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"COLUMNS": "100"} | (env or {}),
        check=False,
    )


@pytest.mark.parametrize("door", DOORS, ids=lambda p: p.stem)
def test_help_is_as_recorded_with_an_example_that_names_the_door(door):
    answer = run(door, "--help")
    assert answer.returncode == 0, answer.stderr
    assert_golden(f"help-{door.stem}.txt", answer.stdout)
    assert "Example:" in answer.stdout
    assert door.name in answer.stdout.split("Example:")[1]


@pytest.mark.parametrize("door", DOORS, ids=lambda p: p.stem)
def test_help_comes_within_half_a_second(door):
    """In the processor's time, the fastest of up to five: on an idle machine that is how long it takes."""
    seconds = []
    while len(seconds) < 5 and not (seconds and seconds[-1] < 0.5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run(door, "--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.5


def here(monkeypatch, capsys, door, *arguments, cwd, env=None):
    """The same in this process, which has the libraries already: what a door calls, and what that says."""
    from andscale.cli import call
    from andscale.spelling import DOORS as names

    (command,) = [name for name, path in names.items() if ROOT / path == door]
    monkeypatch.chdir(cwd)
    monkeypatch.setattr(sys, "argv", [str(door)])
    for name, value in (env or {}).items():
        monkeypatch.setenv(name, value)
    code = call(command, list(map(str, arguments)))
    said = capsys.readouterr()
    return subprocess.CompletedProcess(arguments, code, said.out, said.err)


def test_a_mistake_ends_a_door_with_its_code_and_one_line(tmp_path):
    """The door's process and the call within this one, which the tests below make, say the same."""
    _fails(run(LAUNCH, "--config", "none.toml", cwd=tmp_path), 2, "no config file none.toml", "fashion_mnist_demo")
    _fails(run(LAUNCH, "--nonsense", cwd=tmp_path), 2, "--nonsense", "(see launch_round.py --help)")
    assert list(tmp_path.iterdir()) == []


def test_every_door_is_known_to_those_who_spell_commands():
    from andscale.spelling import DOORS as names

    opened = {door: re.search(r'open_door\("(\w+)"', door.read_text()) for door in DOORS}
    assert {command: ROOT / path for command, path in names.items()} == {
        match[1]: door for door, match in opened.items() if match
    }


@pytest.mark.parametrize("in_a_checkout", [True, False])
def test_torchrun_understands_the_example(monkeypatch, repository, in_a_checkout):
    """Without ``--`` it takes a command's --run for the beginning of one of its own options."""
    from torch.distributed.run import get_args_parser

    from andscale import spelling
    from andscale.cli import train_round

    monkeypatch.setattr(spelling, "in_checkout", lambda: in_a_checkout)
    examples = [spelling.spell_all(train_round.__doc__).split("Example: ")[1].split("\n")[0]]
    if in_a_checkout:
        examples += re.findall(r"^ +(.*torchrun .*)$", (repository / "README.md").read_text(), re.MULTILINE)
        assert len(examples) == 2
    for example in examples:
        parsed = get_args_parser().parse_args(example.split()[1:])
        words = [word for word in (parsed.training_script, *parsed.training_script_args) if word != "--"]
        door = ["jobs/train_round.py"] if in_a_checkout else ["andscale", "train"]
        assert words[: len(door)] == door and words[len(door)] == "--run" and words[-2:] == ["--round", "0"]
        assert parsed.no_python != in_a_checkout


def test_the_console_script_lists_every_command():
    answer = run("-c", "from andscale.cli import main; main()", "--help")
    assert_golden("help-andscale.txt", answer.stdout)


@pytest.mark.parametrize("name", ["status", "cancel"])
def test_help_of_commands_without_a_door_is_as_recorded(name):
    answer = run("-c", "from andscale.cli import main; main()", name, "--help")
    assert_golden(f"help-{name}.txt", answer.stdout)
    assert "Example:" in answer.stdout


def _fails(answer, code, *words):
    assert answer.returncode == code, answer.stdout + answer.stderr
    lines = answer.stderr.strip().splitlines()
    assert [line.startswith("error: ") for line in lines] == [False] * (len(lines) - 1) + [True], answer.stderr
    for word in words:
        assert word in lines[-1], lines[-1]


@pytest.fixture
def config(tmp_path, digits):
    path = tmp_path / "tiny.toml"
    path.write_text(f'[data]\ndataset = "{digits.root}"\nimage_size = 8\n[model]\nbackbone = "small_resnet"\n')
    return path


def _silent_slurm(tmp_path_factory):
    """A PATH whose Slurm has no controller that answers."""
    folder = tmp_path_factory.mktemp("slurm")
    for name, says in (("scontrol", "Slurmctld(primary) at nowhere is DOWN"), ("sbatch", "")):
        (folder / name).write_text(f"#!/bin/sh\necho '{says}'\nexit 1\n")
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


LAUNCH = ROOT / "jobs" / "launch_round.py"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--round", "x"], 2, ["'--round'", "--help"]),
        (["--nonsense"], 2, ["--nonsense"]),
        (["--round", "1", "--rounds", "0-1"], 2, ["exclude each other"]),
        (["--rounds", "3-1"], 2, ["'3-1' is empty"]),
        (["--rounds", "a"], 2, ["not of the form A-B"]),
        (["--round", "1"], 2, ["there is no run below runs/", "--config"]),
        (["--run", "nowhere"], 2, ["there is no run nowhere: start it with --config"]),
        (["--config", "none.toml"], 2, ["no config file none.toml"]),
        (["--config", "tiny.toml", "--set", "optim.epochs=3"], 2, ["unknown key optim.epochs", "num_epochs"]),
        (["--config", "tiny.toml", "--set", "method.temperature=0"], 2, ["method.temperature = 0"]),
        (["--config", "tiny.toml", "--set", "data.dataset=x"], 2, ["x is not a prepared", "prepare_shards.py"]),
        (["--config", "tiny.toml", "--cluster", "moon"], 2, ["choose one of auto, slurm, local"]),
        (["--config", "tiny.toml", "--method", "moon"], 2, ["method.name", "'supervised' or 'random'"]),
        (["--config", "tiny.toml", "--method", "random", "--round", "1"], 2, ["there is nothing to train"]),
        (["--config", "tiny.toml", "--round", "1"], 2, ["round 0 has no memory: run --round 0 first"]),
        (["--config", "tiny.toml", "--set", "model.backbone=resnt"], 2, ["model.backbone", "'resnet18'"]),
        (["--config", "tiny.toml", "--set", "model.stem=imagenet"], 2, ["small_resnet has a small stem only"]),
        (["--config", "tiny.toml", "--set", "model.backbone=alexnet"], 2, ["image_size = 8 is too small for alexnet"]),
        (["--config", "tiny.toml", "--set", "model.backbone=timm:resnet1O"], 2, ["no network 'resnet1O'", "resnet1"]),
        (["--config", "tiny.toml", "--set", "method.num_neighbours=1437"], 2, ["k must be at most 1436"]),
        (["--config", "tiny.toml", "--run", "50%"], 2, ["cannot have '%'"]),
        (["--config", "tiny.toml", "--rounds", "0-5"], 2, ["round 5 is outside the curriculum"]),
        (["--config", "tiny.toml", "--run", "foreign"], 2, ["foreign exists and is not a run", "choose another --run"]),
        (["--config", "tiny.toml", "--run", "/proc/x", "--cluster", "local"], 2, ["cannot write in /proc"]),
        (["--config", "tiny.toml", "--cluster", "slurm"], 1, ["no Slurm controller answers", "--cluster local"]),
    ],
)  # fmt: skip
def test_mistakes_in_a_launch_get_one_line_and_write_nothing(
    tmp_path, tmp_path_factory, config, monkeypatch, capsys, arguments, code, words
):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    silent = _silent_slurm(tmp_path_factory)
    _fails(here(monkeypatch, capsys, LAUNCH, *arguments, cwd=tmp_path, env=silent), code, *words)
    assert sorted(tmp_path.rglob("*")) == before


def test_auto_takes_this_machine_when_no_controller_answers(tmp_path, tmp_path_factory, config):
    answer = run(LAUNCH, "--config", config, "--dry-run", cwd=tmp_path, env=_silent_slurm(tmp_path_factory))
    assert answer.stdout.splitlines()[0].endswith("2 steps on this machine"), answer.stderr


def test_what_a_killed_first_launch_leaves_is_not_in_the_way(tmp_path, config):
    from andscale.config_file import load_config
    from andscale.store.run_record import create_run

    root = tmp_path / "runs" / "tiny"
    root.mkdir(parents=True)
    (root / ".run.json.tmp-0123456789abcdef").write_text("{")
    (root / "launcher.lock").write_text("")
    plan = run(LAUNCH, "--config", config, "--cluster", "local", "--dry-run", cwd=tmp_path)
    assert plan.returncode == 0, plan.stderr
    create_run(root, load_config(config), tmp_path, "fingerprint")


def test_a_dry_run_for_slurm_needs_none(tmp_path, tmp_path_factory, config):
    silent = _silent_slurm(tmp_path_factory)
    plan = run(LAUNCH, "--config", config, "--cluster", "slurm", "--dry-run", cwd=tmp_path, env=silent)
    assert plan.stdout.count("#!/bin/bash") == 2, plan.stderr
    assert "--dependency='afterok:<train round 0>'" in plan.stdout


def test_shards_are_verified_without_naming_their_source(tmp_path, digits):
    import shutil

    shutil.copytree(digits.root, tmp_path / "copy")
    answer = run(ROOT / "tools/prepare_shards.py", "--verify", "copy", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert "every hash is right: copy (1,437 train, 360 val)" in answer.stdout
    path = tmp_path / "copy" / "train-000001.tar"
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    _fails(run(ROOT / "tools/prepare_shards.py", "--verify", "copy", cwd=tmp_path), 1, "train-000001.tar")


def test_a_config_that_differs_from_the_runs_stops_with_the_difference(tmp_path, config):
    plan = run(LAUNCH, "--config", config, "--cluster", "local", "--dry-run", cwd=tmp_path)
    assert plan.returncode == 0, plan.stderr
    assert not (tmp_path / "runs").exists()
    from andscale.config_file import load_config
    from andscale.store.run_record import create_run

    create_run(tmp_path / "runs" / "tiny", load_config(config), tmp_path, "fingerprint")
    for more in (["--config", config], []):
        answer = run(LAUNCH, *more, "--set", "optim.learning_rate=0.5", "--cluster", "local", cwd=tmp_path)
        _fails(answer, 2, "optim.learning_rate: 0.03 -> 0.5", "choose another --run")
    resources = run(LAUNCH, "--set", "resources.tasks_per_node=2", "--dry-run", "--cluster", "local", cwd=tmp_path)
    assert resources.returncode == 0, resources.stderr


@pytest.mark.parametrize(
    ("door", "arguments", "words"),
    [
        ("jobs/train_round.py", ["--run", "r", "--round", "1"], ["round 0 has no memory: run --round 0 first"]),
        ("jobs/rebuild_index.py", ["--run", "r", "--round", "1"], ["round 0 has no memory: run --round 0 first"]),
        ("jobs/rebuild_index.py", ["--run", "r", "--round", "0"], ["round 0 has no neighbourhoods to find"]),
        ("jobs/evaluate_round.py", ["--run", "r", "--round", "0"], ["round 0 has no model: run --round 0 first"]),
        ("tools/inspect_neighbours.py", ["--run", "r"], ["has no neighbourhoods yet"]),
        ("tools/inspect_neighbours.py", ["--run", "r", "--round", "3"], ["round 3 has no neighbourhoods"]),
        ("tools/inspect_neighbours.py", ["--run", "foreign"], ["foreign is not a run"]),
        ("tools/discover.py", ["none.npy", "out"], ["no features at none.npy"]),
        ("tools/discover.py", ["f.npy", "out", "--k", "6"], ["k = 6 neighbours cannot be had from 6 samples"]),
        ("tools/discover.py", ["f.npy", "out", "--temperature", "0"], ["temperature = 0.0: it must be a positive"]),
        ("tools/discover.py", ["f.npy", "out", "--round", "1"], ["--round and --rounds belong together"]),
        ("tools/discover.py", ["f.npy", "/proc/out"], ["cannot write in /proc"]),
        ("tools/export_onnx.py", ["none", "x.onnx"], ["there is no folder none"]),
        ("tools/export_onnx.py", ["r", "x.onnx"], ["no round has a model yet"]),
        ("tools/prepare_shards.py", ["moon", "out"], ["no source 'moon'", "fashion-mnist"]),
        ("tools/prepare_shards.py", ["digits", "a", "b", "c"], ["3 folders given: OUT, or FOLDER and OUT"]),
        ("tools/prepare_shards.py", ["digits", "/proc/out"], ["cannot write in /proc"]),
        ("tools/prepare_shards.py", ["digits", "foreign"], ["foreign"]),
    ],
)
def test_mistakes_elsewhere_get_one_line_and_write_nothing(
    tmp_path, config, rng, monkeypatch, capsys, door, arguments, words
):
    from andscale.config_file import load_config
    from andscale.store.run_record import create_run

    create_run(tmp_path / "r", load_config(config), tmp_path, "fingerprint")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("mine")
    np.save(tmp_path / "f.npy", reference.unit_rows(rng, 6, 4))
    before = sorted(tmp_path.rglob("*"))
    _fails(here(monkeypatch, capsys, ROOT / door, *arguments, cwd=tmp_path), 2, *words)
    assert sorted(tmp_path.rglob("*")) == before


_EXTRAS = {
    "cpu": "faiss",
    "sources": "sklearn scipy",
    "timm": "timm",
    "export": "onnx onnxruntime onnxscript",
    "remote": "fsspec",
    "service": "fastapi uvicorn httptools uvloop prometheus_client",
    "report": "jinja2",
    "maps": "pytorch_grad_cam matplotlib umap",
}
_WITHOUT = """
import json, sys
missing, lines = json.loads(sys.argv[1])
sys.modules.update(dict.fromkeys(missing))
from andscale.cli import call
for line in lines:
    print(call(None, line.split()), file=sys.stderr)
"""


def test_a_missing_extra_gets_one_line_that_names_it(tmp_path, config, rng):
    np.save(tmp_path / "f.npy", reference.unit_rows(rng, 60, 4))
    launch = "launch --config tiny.toml --cluster local --dry-run"
    asked = {
        "cpu": launch,
        "sources": "prepare digits out",
        "timm": f"{launch} --set model.backbone=timm:resnet18",
        "export": "export out x.onnx",
        "remote": f"{launch} --set data.dataset=https://example.org/x",
        "service": "serve --run out",
        "report": "inspect --run table --html report.html",
        "maps": "map --run out --out map.png",
    }
    missing = [name for names in _EXTRAS.values() for name in names.split()]
    lines = ["discover f.npy table", *asked.values()]  # which needs none of them
    answer = run("-c", _WITHOUT, json.dumps([missing, lines]), cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
    assert answer.returncode == 0, answer.stderr
    discovered, *errors = re.split(r"^(?=error: )", answer.stderr, flags=re.MULTILINE)
    assert discovered.splitlines()[-1] == "0"
    for extra, text in zip(asked, errors, strict=True):
        line, code = text.splitlines()
        assert f"andscale[{extra}]" in line and code == "2", text


def test_features_with_nan_fail_with_code_1(tmp_path):
    np.save(tmp_path / "f.npy", np.float32([[1, 2], [np.nan, 1], [3, 1]]))
    _fails(run(ROOT / "tools/discover.py", "f.npy", "out", cwd=tmp_path), 1, "f.npy", "NaN", "sample ids 1")
    assert not (tmp_path / "out").exists()


def test_discover_says_what_it_found_and_where_it_wrote(tmp_path, rng):
    np.save(tmp_path / "f.npy", reference.unit_rows(rng, 60, 4))
    answer = run(ROOT / "tools/discover.py", "f.npy", "out", "--k", "2", "--rounds", "4", "--round", "1", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert "60 samples, k = 2, 15 anchors" in answer.stdout
    assert "wrote out" in answer.stdout
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["figures"]["num_anchors"] == 15


def test_a_python_without_the_packages_is_sent_to_the_environment_or_told_to_make_it(tmp_path):
    import shutil

    for name in ("jobs", "andscale"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    bare = [sys._base_executable, "-S", str(tmp_path / "jobs" / "launch_round.py"), "--help"]
    answer = subprocess.run(bare, capture_output=True, text=True, check=False)
    assert answer.returncode == 1
    assert answer.stderr.startswith("error: andscale's packages are not installed")
    assert "make env" in answer.stderr
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    answer = subprocess.run(bare, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "Usage: launch_round.py" in answer.stdout
