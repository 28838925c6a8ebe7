"""Starting the real command line on a tiny run, and comparing what two runs ended with."""

import json
import os
import subprocess
import sys
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


def write_config(folder, digits):
    path = folder / "tiny.toml"
    path.write_text(CONFIG.format(dataset=digits.root))
    return path


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
