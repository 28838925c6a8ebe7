"""Every reader against mutated files: it reads them, or refuses them by name in one line; see ``fuzz_child.py``.

ANDSCALE_FUZZ_SECONDS sets the time of each format (1 by default), ANDSCALE_FUZZ_SEED where the search begins.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz_groups import GROUPS

SECONDS = float(os.environ.get("ANDSCALE_FUZZ_SECONDS", "1"))
SEED = os.environ.get("ANDSCALE_FUZZ_SEED", "0")
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.timeout(0)
def test_mutated_files_are_read_or_refused_by_name(tmp_path, group):
    child = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("fuzz_child.py")), group, str(SECONDS), SEED, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=120 + 4 * SECONDS * len(GROUPS[group]),
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"},
    )
    print(child.stdout)
    last = (tmp_path / "what").read_text() if (tmp_path / "what").exists() else "nothing yet"
    assert child.returncode == 0, (
        f"{last} (bytes in {tmp_path}/case), exit code {child.returncode}:\n{child.stderr[-6000:]}"
    )
