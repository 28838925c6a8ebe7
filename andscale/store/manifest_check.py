"""What the list of files in a manifest must be before anything is done with it: it may be a stranger's."""

from pathlib import Path
from typing import Any

from andscale.errors import RunError

_MAX_COUNT = 1 << 62


def check_files(path: Path, files: Any, manifest_name: str) -> None:
    """Check the ``files`` of the manifest ``path``: plain names, each once, and counts that are counts.

    Raises:
        RunError: a name that leads outside of the folder, or twice the same.
        TypeError, ValueError, KeyError: anything else that is no such list.
    """
    names = [file["name"] for file in files]
    for file in files:
        if type(file["name"]) is not str or type(file["blake3"]) is not str:
            raise TypeError("a name and a hash are texts")
        for count in (file["bytes"], 0 if file["rows"] is None else file["rows"]):
            if type(count) is not int or not 0 <= count <= _MAX_COUNT:
                raise ValueError(f"{file['name']} with {count} rows or bytes")
    for name in names:
        if name in ("", "..", manifest_name) or Path(name).name != name or "\0" in name:
            raise RunError(f"{path} names a file outside its folder: {name!r}")
    if len(set(names)) < len(names):
        raise RunError(f"{path} names a file twice")
