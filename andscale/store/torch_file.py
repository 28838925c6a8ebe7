"""What is looked at before torch reads a checkpoint that may be a stranger's.

``weights_only=True`` runs nothing, but it unpacks whatever a zip says, and hashes tuples in tuples for ever.
"""

import pickletools
import zipfile
from pathlib import Path

_MAX_PICKLE_BYTES = 64 << 20
_MAX_NESTED = 8
"""Tuples in tuples; a tensor's are three."""
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_POPPED = {
    "APPEND": 1, "SETITEM": 2, "BUILD": 1, "POP": 1, "REDUCE": 1, "NEWOBJ": 1, "STACK_GLOBAL": 1,
}  # fmt: skip
_TO_MARK = {"APPENDS", "SETITEMS", "ADDITEMS", "POP_MARK"}
_MADE_OF_MARK = {"LIST", "DICT", "FROZENSET"}
_SILENT = {"PROTO", "FRAME", "STOP", "MEMOIZE", "BINPERSID"}


def check_torch_file(path: Path) -> None:
    """Check that a file is what ``torch.save`` writes: a zip of stored members with a modest pickle.

    Raises:
        ValueError: an older format, a compressed member, members that overlap or claim more than the file, tuples
            nested without need. zipfile.BadZipFile, and what ``pickletools`` raises: no such file.
    """
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(m.compress_type != zipfile.ZIP_STORED or m.file_size != m.compress_size for m in members):
            raise ValueError(f"{path} has compressed members")
        if sum(m.file_size for m in members) > size or len({m.filename for m in members}) < len(members):
            raise ValueError(f"{path} has members that overlap, or more than the file has bytes")
        pickles = [m for m in members if m.filename.endswith(".pkl")]
        if len(pickles) != 1 or pickles[0].file_size > _MAX_PICKLE_BYTES:
            raise ValueError(f"{path} has {len(pickles)} pickles, or a large one")
        check_nesting(archive.read(pickles[0]))


def check_nesting(data: bytes) -> None:
    """Raise ValueError when tuples lie in tuples beyond need: hashing them takes twice as long a level.

    The stack is followed with the depth of each value alone; what torch's unpickler does not know it refuses itself.
    """
    stack: list[int] = []
    marks: list[int] = []
    memo: dict[int, int] = {}
    for code, argument, _ in pickletools.genops(data):
        name = code.name
        if name == "MARK":
            marks.append(len(stack))
        elif name in _TUPLES:
            count = _TUPLES[name]
            stack[-count:] = [1 + max(stack[-count:])]
        elif name == "TUPLE" or name in _MADE_OF_MARK or name in _TO_MARK:
            items = stack[marks[-1] :]
            del stack[marks.pop() :]
            if name == "TUPLE":
                stack.append(1 + max(items, default=0))
            elif name in _MADE_OF_MARK:
                stack.append(0)
        elif name in _POPPED:
            del stack[-_POPPED[name] :]
        elif "PUT" in name:
            assert isinstance(argument, int)
            memo[argument] = stack[-1]
        elif "GET" in name:
            stack.append(memo[int(str(argument))])
        elif name not in _SILENT:
            if code.stack_before:
                raise ValueError(f"{name} in a checkpoint")
            stack.append(0)
        if stack and stack[-1] > _MAX_NESTED:
            raise ValueError("tuples nested beyond need")
