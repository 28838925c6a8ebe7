import shutil
import subprocess
import sys

import pytest

DISK_BYTES = 32 << 20


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 32 MiB in memory."""
    folder = tmp_path / "small disk"
    folder.mkdir()
    mounted = sys.platform == "linux" and shutil.which("mount")
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    if not mounted or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here: that takes root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
