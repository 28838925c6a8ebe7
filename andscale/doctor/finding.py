"""What one look at the machine gave."""

import subprocess
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        subject: what was looked at.
        state: ``ok``; ``warning``: a run works, less well or with less; ``problem``: it does not.
        text: what was found.
        fix: what to do; empty where all is well.
    """

    subject: str
    state: Literal["ok", "warning", "problem"]
    text: str
    fix: str = ""


def ok(subject: str, text: str) -> Finding:
    """All is well."""
    return Finding(subject, "ok", text)


def warning(subject: str, text: str, fix: str) -> Finding:
    """It works, but."""
    return Finding(subject, "warning", text, fix)


def problem(subject: str, text: str, fix: str) -> Finding:
    """It does not work."""
    return Finding(subject, "problem", text, fix)


def ask(command: list[str], timeout_s: float) -> tuple[int | None, str]:
    """Run a command; returns its exit code (None: not there, or silent too long) and the words of its answer."""
    try:
        answer = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return None, f"no answer within {timeout_s:g} s"
    except OSError as error:
        return None, error.strerror or type(error).__name__
    return answer.returncode, answer.stdout.strip() or answer.stderr.strip()


def one_line(text: object, length: int = 160) -> str:
    """A text without line breaks, not longer than that."""
    words = " ".join(str(text).split())
    return words if len(words) <= length else f"{words[:length]}..."
