"""What the maps of attention and of features share: the libraries they need, and pictures written whole."""

import io
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from andscale.errors import UsageError
from andscale.store.files import check_writable, write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg")


def check_picture(out: Path, modules: tuple[str, ...]) -> None:
    """Refuse early what would fail after minutes; raises UsageError."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise UsageError(f"{', '.join(missing)} cannot be imported: install andscale[maps]")
    if out.suffix.lower() not in FORMATS:
        raise UsageError(f"{out}: the picture's name must end in {' or '.join(FORMATS)}")
    if out.is_dir():
        raise UsageError(f"{out} is a folder: name the picture's file")
    check_writable(out.parent)


def write_picture(figure: "Figure", out: Path) -> None:
    """Write a figure in the format of its name; an existing file is replaced."""
    data = io.BytesIO()
    figure.savefig(data, format=out.suffix.lower().removeprefix("."), dpi=150)
    write_file(out, data.getvalue())
