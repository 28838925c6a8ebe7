"""Which code made an artefact."""

import json
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]


@cache
def source_commit() -> str | None:
    """The git commit of the code that runs, ``+changes`` when the work tree differs; None where nobody knows.

    It is the checkout's, or what pip wrote down when it installed from a git address. A repository that merely has the
    environment somewhere below it is another project's.
    """
    if not (_ROOT / ".git").exists():
        return _installed_commit()
    try:
        answer = subprocess.run(
            ["git", "-C", str(_ROOT), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None


def _installed_commit() -> str | None:
    """The commit in this installation's ``direct_url.json`` (PEP 610)."""
    try:
        installed = distribution("andscale")
        if Path(str(installed.locate_file(""))).resolve() != _ROOT:
            return None  # the packages of another andscale
        commit = json.loads(installed.read_text("direct_url.json") or "{}")["vcs_info"]["commit_id"]
    except (PackageNotFoundError, OSError, ValueError, KeyError, TypeError):
        return None
    return commit if isinstance(commit, str) else None
