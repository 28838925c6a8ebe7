"""Starting the real command line on a tiny run, and comparing what two runs ended with."""

import fcntl
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from andscale.store.neighbourhoods import read_table
from andscale.store.run_layout import RunLayout
from tiny_runs import assert_same_state, trained_state

ROOT = Path(__file__).resolve().parents[1]
CONFIG = """\
[data]
dataset = "{dataset}"
image_size = 8
max_train_samples = 301
max_val_samples = 100
[model]
backbone = "small_resnet"
feature_dim = 16
[optim]
num_epochs = 3
global_batch_size = 32
[index]
check_rows = 50
[evaluation]
batch_size = 40
[resources]
tasks_per_node = 2
evaluate_tasks_per_node = 2
gpus_per_node = 0
timeout_min = 20
"""


def write_config(folder, digits, evaluate_ranks=1):
    """A config of two training ranks; a second rank of evaluation takes seconds to start: only where it matters."""
    path = folder / "tiny.toml"
    ranks = f"evaluate_tasks_per_node = {evaluate_ranks}"
    path.write_text(CONFIG.format(dataset=digits.root).replace("evaluate_tasks_per_node = 2", ranks))
    return path


@dataclass(frozen=True)
class UndisturbedRun:
    """Rounds 0 and 1 on this machine; read only, for other tests have it too.

    Attributes:
        folder: where it was launched; a name with spaces and quotes.
        output: what the launch printed.
        seconds: how long it took.
    """

    folder: Path
    output: str
    seconds: float

    @property
    def root(self):
        return self.folder / "runs" / "tiny"


def undisturbed_run(shared, digits, num_epochs):
    """The run with so many epochs a round, below ``shared``; the first process that asks for it makes it."""
    folder = shared / f'a whole run\'s "folder", {num_epochs} epochs'
    folder.mkdir(exist_ok=True)
    done = folder / "done.json"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            arguments = ("--rounds", "0-1", "--config", write_config(folder, digits, 2), "--cluster", "local")
            started = time.monotonic()
            output = run_command(*arguments, "--set", f"optim.num_epochs={num_epochs}", cwd=folder)
            done.write_text(json.dumps({"output": output, "seconds": time.monotonic() - started}))
    return UndisturbedRun(folder, **json.loads(done.read_text()))


def command(*arguments, door="jobs/launch_round.py"):
    return [sys.executable, str(ROOT / door), *map(str, arguments)]


def run_command(*arguments, cwd, env=None, door="jobs/launch_round.py"):
    """Run to the end; asserts success, returns standard output."""
    answer = subprocess.run(
        command(*arguments, door=door),
        cwd=cwd,
        env=os.environ | (env or {}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, f"{answer.stdout}\n{answer.stderr}"
    return answer.stdout


def assert_same_run(first, second, rounds):
    """The same weights, memories, neighbourhoods and accuracies, bit for bit."""
    a, b = RunLayout(first), RunLayout(second)
    for number in rounds:
        assert_same_state(trained_state(a, number), trained_state(b, number))
        evaluations = [json.loads((x.round(number).evaluation / "evaluation.json").read_text()) for x in (a, b)]
        assert evaluations[0] == evaluations[1]
        if number:
            tables = [read_table(x.round(number).neighbourhoods)[0] for x in (a, b)]
            for column in ("neighbour_ids", "similarities", "entropies", "is_anchor"):
                assert (getattr(tables[0], column) == getattr(tables[1], column)).all()
