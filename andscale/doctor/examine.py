"""The whole examination, in order, and its two forms."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from andscale.doctor.cluster import check_slurm
from andscale.doctor.collectives import check_collectives
from andscale.doctor.disk import check_folder, check_open_files, check_shared_memory
from andscale.doctor.finding import Finding, one_line, problem
from andscale.doctor.search import check_faiss
from andscale.doctor.software import check_compiler, check_packages, check_python, check_torch

_MARKS = {"ok": "ok     ", "warning": "WARNING", "problem": "PROBLEM"}
_SUBJECT_WIDTH = 17


def examine(folder: Path) -> Iterator[Finding]:
    """Look at this machine, for runs in ``folder``; findings come as they are made.

    What fails in a way that nobody thought of is a problem too, and the rest is looked at nevertheless.
    """
    yield check_python()
    yield from _guarded("packages", lambda: list(check_packages()))
    cuda, num_gpus = _torch_facts()
    yield from _guarded("torch", lambda: list(check_torch()))
    yield from _guarded("C compiler", lambda: list(check_compiler(num_gpus)))
    yield from _guarded("FAISS", lambda: list(check_faiss(cuda, num_gpus)))
    yield from _guarded("gloo", lambda: list(check_collectives(num_gpus)))
    yield from _guarded("Slurm", lambda: list(check_slurm()))
    yield from _guarded("disk", lambda: list(check_folder(folder)))
    yield from _guarded("shared memory", lambda: [check_shared_memory()])
    yield from _guarded("open files", lambda: [check_open_files()])


def _torch_facts() -> tuple[str | None, int]:
    """The CUDA that torch is built for, and the GPUs that it sees; nothing where it does not import."""
    try:
        import torch
    except (ImportError, OSError):
        return None, 0
    return torch.version.cuda, torch.cuda.device_count()


def _guarded(subject: str, look: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return look()
    except Exception as error:
        return [
            problem(subject, f"{type(error).__name__}: {one_line(error)}", "this is not foreseen: please report it")
        ]


def as_line(finding: Finding) -> str:
    """One line, and one more for the fix."""
    line = f"{_MARKS[finding.state]}  {finding.subject:<{_SUBJECT_WIDTH}} {finding.text}"
    return f"{line}\n{'':{len(_MARKS['ok']) + 3 + _SUBJECT_WIDTH}}-> {finding.fix}" if finding.fix else line


def summary(findings: list[Finding]) -> str:
    """How many of each."""
    counts = {state: sum(f.state == state for f in findings) for state in _MARKS}
    return f"{counts['problem']} problems, {counts['warning']} warnings, {counts['ok']} fine"


def as_json(findings: list[Finding]) -> str:
    """All findings, and whether there is a problem."""
    record = {"healthy": is_healthy(findings), "findings": [asdict(f) for f in findings]}
    return json.dumps(record, indent=2)


def is_healthy(findings: list[Finding]) -> bool:
    """Whether nothing is a problem; warnings may be there."""
    return all(f.state != "problem" for f in findings)
