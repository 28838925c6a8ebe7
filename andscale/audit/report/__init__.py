"""The audit as one HTML file that needs nothing else: figures as SVG, images as small thumbnails."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from andscale.audit.subject import Subject
from andscale.errors import UsageError
from andscale.store.files import write_file


def write_report(subject: Subject, path: Path, inspected: dict[str, Any] | None = None) -> None:
    """Write one HTML file that needs no other and no network; an existing file is replaced.

    Args:
        subject: one table and what is known about its samples.
        path: the file.
        inspected: what ``inspect_subject`` gave, where it is there already.

    Raises:
        UsageError: jinja2 is not installed, or ``path`` is a folder. RunError: another round of the run is damaged.
    """
    if find_spec("jinja2") is None:
        raise UsageError("the report needs jinja2: install andscale[report]")
    if path.is_dir():
        raise UsageError(f"{path} is a folder: name the report's file")
    from andscale.audit.report.page import render_report

    write_file(path, render_report(subject, inspected).encode())
