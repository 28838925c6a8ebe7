"""Every command, setting and Python block in README.md and docs/ is run on tiny data, or parsed with a reason."""

import importlib.util
import re
import shlex
import shutil
import tomllib
from itertools import pairwise
from pathlib import Path

import matplotlib
import pytest
from doc_blocks import LANGUAGES, PAGES, ROOT, SHELLS, blocks, commands, name_of, unfenced
from doc_office import ADDRESS, COMMANDS, DEMO, command_of, make_office, parse, quick_jobs, served, type_it

from andscale.config_file import build_config, load_config
from andscale.orchestration.slurm import sbatch_script
from andscale.orchestration.steps import Step
from andscale.store.run_layout import RunLayout

pages = pytest.mark.parametrize("page", PAGES, ids=name_of)

NOT_RUN = {
    r"andscale doctor( .*)?": "tests/test_doctor.py runs it",
    r"python tools/map\.py .*": "tests/audit/test_pictures.py runs it: UMAP compiles for long",
    r"python tools/export_onnx\.py .*": "tests/training/test_onnx_export.py runs it: torch's exporter starts for long",
    r"python tools/reproduce\.py (?!.*--dry-run).*": "minutes; tests/reproduction/test_whole_table.py runs one",
    r"\.venv/bin/torchrun .*": "two processes; tests/training/test_loop.py runs ranks",
}
"""andscale's own commands that are parsed only: pattern of the whole command -> why."""

FOREIGN = {
    r"srun --nodes 1 --gpus 2 \.venv/bin/andscale doctor --run runs": "needs a Slurm with GPUs",
    r"sbatch .*": "needs a Slurm",
    r"tail -f runs/\S+": "stays until Ctrl-C",
    r"tensorboard --logdir runs/\S+": "stays until Ctrl-C",
    r"grep -h andscale runs/\S+": "part of a recorded session",
}
"""Commands of other programs that are not run: pattern -> why."""

BY_HAND = {"docs/release.md": "what a maintainer does, hours of it, and in public"}
"""Pages whose commands are for people: andscale's own and make's are parsed, other programs' are not looked at."""

SUBSTITUTES = [
    (r"(prepare_shards\.py (image-folder|imagenet)) FOLDER", r"\1 raw/\2", "a raw data set under its own name"),
    (r"raw/image-folder", "raw/my-images", "likewise"),
    (r"(prepare_shards\.py (cifar10)) (?=data/)", r"\1 raw/\2 ", "synthetic files instead of a download"),
    (r"--min-purity 0\.6", "--min-purity 0.01", "two rounds of one epoch on 32 digits reach less"),
    (r"tools/serve\.py", "tools/serve.py --port 0", "the port may be taken"),
    (re.escape(ADDRESS), "ADDRESS", "likewise"),
    (r"(rebuild_index|evaluate_round)\.py --run runs/my_images", r"\1.py --run runs/half", "a run with round 0 only"),
    (r"epoch-0016", "epoch-0001", "one epoch a round"),
    (r"--rounds 0-4 (?=.*configs/(cifar10|imagenet|my)_)", "--rounds 0-1 ", "the rounds after them are the same again"),
]
"""What is put in for names of the user's, or takes too long: pattern -> replacement, why."""


@pytest.fixture(scope="module")
def office(tmp_path_factory):
    """The working folder, with the demo's three rounds and a run that has round 0 only."""
    folder = tmp_path_factory.mktemp("documented")
    make_office(folder)
    with pytest.MonkeyPatch.context() as patch, quick_jobs(patch):
        patch.chdir(folder)
        prepare = "python tools/prepare_shards.py fashion-mnist raw/fashion-mnist data/fashion-mnist"
        type_it(f"{prepare} --samples-per-shard 20".split(), patch)
        launch = "python jobs/launch_round.py --config configs/fashion_mnist_demo.toml"
        type_it(f"{launch} --rounds 0-2".split(), patch)
        type_it(f"{launch} --round 0 --run runs/half".split(), patch)
        shutil.copytree(DEMO, "runs/digits")
        with served(DEMO) as address:
            yield folder, address, set()


def substituted(text, address=ADDRESS):
    for pattern, replacement, _ in SUBSTITUTES:
        text = re.sub(pattern, replacement, text)
    return text.replace("ADDRESS", address)


def reason_not_to_run(line):
    line = line.removeprefix(".venv/bin/") if line.startswith(".venv/bin/andscale") else line
    return next((why for pattern, why in NOT_RUN.items() if re.fullmatch(pattern, line)), None)


def is_foreign(line):
    return any(re.fullmatch(pattern, line) for pattern in FOREIGN)


def run_shell(block, address, done, monkeypatch):
    for words in commands(block):
        line, by_hand = " ".join(words), name_of(block.page) in BY_HAND
        if is_foreign(line) or line in done or (by_hand and command_of(words)[0] is None and words[0] != "make"):
            continue
        done.add(line)
        kept = (word.replace(" ", "\0") for word in words)
        typed = [word.replace("\0", " ") for word in substituted(" ".join(kept), address).split(" ")]
        try:
            name, arguments, _ = command_of(typed)
            if name is not None and (by_hand or block.language == "console" or reason_not_to_run(line)):
                parse(name, arguments)
            else:
                type_it(typed, monkeypatch)
        except (Exception, SystemExit) as error:
            raise AssertionError(f"{block}: {line}: {error}") from error


def run_python(block, address, names):
    exec(compile(substituted(block.text, address), str(block), "exec"), names)


def read_toml(block, folder):
    """A block that stands for a file is written there; every one is a config that andscale takes."""
    values = tomllib.loads(block.text)
    values.setdefault("data", {}).setdefault("dataset", "data/any")
    build_config(values, str(block))
    if block.title:
        (folder / block.title).write_text(block.text)


@pages
def test_what_a_page_shows_works(page, office, monkeypatch):
    folder, address, done = office
    monkeypatch.chdir(folder)
    matplotlib.use("agg")
    names = {}
    with quick_jobs(monkeypatch):
        for block in blocks(page):
            assert block.language in LANGUAGES, f"{block}: a block says which language it is in: {LANGUAGES}"
            if block.language in SHELLS:
                run_shell(block, address, done, monkeypatch)
            elif block.language == "python":
                run_python(block, address, names)
            elif block.language == "toml":
                read_toml(block, folder)


@pages
def test_code_is_fenced(page):
    assert not unfenced(page), f"{name_of(page)}: lines {unfenced(page)} are code without a fence"


def test_every_exception_is_still_needed():
    lines = [" ".join(words) for page in PAGES for block in blocks(page) if block.language in SHELLS
             for words in commands(block)]  # fmt: skip
    shown = "\n".join([*lines, *(block.text for page in PAGES for block in blocks(page))])
    assert not [pattern for pattern in FOREIGN if not any(re.fullmatch(pattern, line) for line in lines)]
    unused = [pattern for pattern, *_ in SUBSTITUTES if not re.search(pattern, shown) and "raw/" not in pattern]
    assert not unused
    short = [line.removeprefix(".venv/bin/") for line in lines]
    assert not [p for p in NOT_RUN if not any(re.fullmatch(p, line) for line in (*lines, *short))]


def test_the_first_try_on_slurm_comes_first_and_asks_for_half_an_hour_in_each_of_its_jobs(tmp_path, monkeypatch):
    page = [block for block in blocks(ROOT / "docs" / "slurm.md") if block.title or block.language in SHELLS]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (file,) = [block for block in page if block.title]
    Path(file.title).write_text(file.text)
    launches = [words for block in page if block.language in SHELLS for words in commands(block)
                if "jobs/launch_round.py" in words]  # fmt: skip
    first = launches[0]
    assert "runs/try" in first
    settings = [word for before, word in pairwise(first) if before == "--set"]
    config = load_config(Path(file.title), settings)
    for kind in ("index", "train", "evaluate"):
        script = sbatch_script(RunLayout(Path("runs/try")), Step(kind, 1), config, [])
        assert "\n#SBATCH --time=30\n" in script, kind


def spoken_commands():
    """(page, words) of commands within sentences; the log is history and may name what is gone."""
    for page in PAGES:
        if page.name == "log.md":
            continue
        prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        for span in re.findall(r"`((?:python|make|andscale(?! error:)|ANDSCALE_TOKEN=\S+ python) [^`\n]+)`", prose):
            yield page, shlex.split(span)


def options_of(words):
    return {word.partition("=")[0] for word in words if re.match(r"--\w", word)}


def test_commands_in_sentences_are_real():
    """Their targets, modules, doors and options exist; what stands for a value may be anything."""
    seen = list(spoken_commands())
    assert len(seen) > 15
    for page, words in seen:
        where = f"{name_of(page)}: {' '.join(words)}"
        if words[0] == "make":
            type_it(words, None)
        elif words[:2] == ["python", "-m"]:
            name = "benchmarks.__main__" if words[2] == "benchmarks" else words[2]
            module = importlib.util.find_spec(name)
            assert module is not None, where
            source = Path(module.origin).read_text()
            assert all(re.search(rf"[\"']{option}[\"']", source) for option in options_of(words)), where
        else:
            name, arguments, _ = command_of(words)
            if name == "--version":
                continue
            assert name in COMMANDS, where
            known = {option for parameter in COMMANDS[name].params for option in parameter.opts}
            assert options_of(arguments) <= known, where
