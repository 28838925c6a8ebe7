"""The rules of the house: who imports whom, nothing on import, sizes of functions and files."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "andscale").rglob("*.py"))
# a part may import its own and lower levels
LEVELS = [
    {"errors", "spelling"},
    {"config", "config_data", "config_file", "config_resources", "store"},
    {"event_log", "metrics", "distributed"},
    {"data"},
    {"training", "indexing"},
    {"evaluation"},
    {"audit", "service"},
    {"orchestration", "doctor"},
    {"reproduction"},
    {"cli", "cli_audit", "cli_launch", "cli_maps", "cli_reproduce", "cli_serve", "client", "door", "__init__"},
]
LIBRARIES = {
    "faiss": {"indexing", "evaluation"},
    "submitit": {"orchestration"},
    "webdataset": {"data"},
    "pyarrow": {"store", "data"},
}
# functions of more than 60 lines, and files of more than 300, that are better whole; keep this short
LONG_FUNCTIONS: set[str] = set()
LONG_FILES: set[str] = set()


def _part(path):
    relative = path.relative_to(ROOT / "andscale")
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _level(part):
    (number,) = [i for i, level in enumerate(LEVELS) if part in level]
    return number


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    part = _part(path)
    for name in _imports(path):
        top, *rest = name.split(".")
        if top == "andscale" and rest:
            assert _level(rest[0]) <= _level(part), f"{path} imports {name}"
            assert {part, rest[0]} != {"training", "indexing"}, f"{path} imports {name}: the jobs share files only"
        if top in LIBRARIES:
            assert part in LIBRARIES[top], f"{path} imports {top}"


def test_labels_are_seen_by_the_supervised_baseline_alone():
    """Nothing else in training or selection may read them."""
    readers = {
        path.name
        for part in ("training", "indexing")
        for path in (ROOT / "andscale" / part).glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "labels"
    }
    assert readers == {"supervised.py"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_importing_does_no_work(path):
    """At module level: definitions, constants, and calls that make constants or types."""
    allowed = (
        ast.Import,
        ast.ImportFrom,
        ast.FunctionDef,
        ast.AsyncFunctionDef,
        ast.ClassDef,
        ast.Assign,
        ast.AnnAssign,
    )
    for node in ast.parse(path.read_text()).body:
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        assert isinstance(node, allowed) or is_docstring or is_typing, f"{path}:{node.lineno}"


def test_functions_and_files_stay_short():
    long_functions, long_files = set(), set()
    for path in FILES:
        text = path.read_text()
        if len(text.splitlines()) > 300:
            long_files.add(str(path.relative_to(ROOT)))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > 60:
                long_functions.add(f"{path.relative_to(ROOT)}:{node.name}")
    assert long_functions == LONG_FUNCTIONS
    assert long_files == LONG_FILES


def test_commands_have_at_most_eight_options():
    from andscale.cli import app

    for command in app.registered_commands:
        most = {"launch": 10, "inspect": 11}.get(command.name, 8)
        assert len(command.callback.__annotations__) - 1 <= most, command.name


def test_the_command_line_imports_nothing_heavy():
    heavy = ("torch", "faiss", "pyarrow", "submitit", "numpy", "pydantic")
    code = f"import sys, andscale.cli; print([m for m in {heavy} if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert answer.stdout.strip() == "[]"


def test_there_are_no_grab_bags():
    assert not [p for p in FILES if p.stem in {"utils", "common", "helpers", "misc"}]
