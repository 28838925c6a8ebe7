"""Parts of the examination that run in processes of their own: several ranks, and what may crash."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from andscale.doctor.finding import one_line

# what it is given are arguments, never text of the program
_CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
from importlib import import_module
getattr(import_module(sys.argv[2]), sys.argv[3])(*sys.argv[4:])
"""


def answer_of(function: str, arguments: list[str], timeout_s: float) -> dict[str, Any]:
    """What one child printed, see ``answers_of``."""
    return answers_of(function, [arguments], timeout_s)[0]


def answers_of(function: str, arguments: list[list[str]], timeout_s: float) -> list[dict[str, Any]]:
    """Call ``module:function`` in as many child processes as there are lists of arguments, at once.

    Returns:
        For each the JSON object of its last line, or ``{"error": why there is none}``. All have ended.
    """
    module, _, name = function.partition(":")
    package = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-c", _CHILD, package, module, name]
    children = [
        subprocess.Popen(
            [*command, *own],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for own in arguments
    ]
    deadline = time.monotonic() + timeout_s
    try:
        return [_answer(child, deadline - time.monotonic(), timeout_s) for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()


def _answer(child: "subprocess.Popen[str]", left_s: float, timeout_s: float) -> dict[str, Any]:
    try:
        out, errors = child.communicate(timeout=max(left_s, 0.1))
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {timeout_s:g} s"}
    if child.returncode < 0:
        return {"error": f"it was ended by {signal.Signals(-child.returncode).name}"}
    try:
        answer: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return {"error": one_line((errors.strip().splitlines() or [f"exit code {child.returncode}"])[-1])}
    return answer
