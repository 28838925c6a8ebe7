"""What no file of the package may do, because a stranger's bytes could make it run or read something."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(p for part in ("andscale", "jobs", "tools") for p in (ROOT / part).rglob("*.py"))
FORBIDDEN = {
    "os.system", "os.popen", "eval", "exec", "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads",
    "shelve.open", "torch.hub.load", "subprocess.getoutput", "subprocess.getstatusoutput", "yaml.load",
    "tar.extract", "tar.extractall", "tar.extractfile", "shutil.unpack_archive", "joblib.load", "np.fromregex",
    "pandas.read_pickle", "importlib.reload",
}  # fmt: skip


def calls(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}, node.lineno


def complaints(path):
    for name, keywords, line in calls(path):
        if name in FORBIDDEN or keywords.get("shell", "False") != "False":
            yield f"{path.name}:{line}: {name}"
        if name == "torch.load" and keywords.get("weights_only") != "True":
            yield f"{path.name}:{line}: torch.load without weights_only=True"
        if name in ("np.load", "numpy.load") and keywords.get("allow_pickle") != "False":
            yield f"{path.name}:{line}: np.load without allow_pickle=False"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_executes_or_unpickles_what_it_reads(path):
    assert list(complaints(path)) == []


@pytest.mark.parametrize(
    "text",
    ["os.system(x)", "subprocess.run(x, shell=True)", "torch.load(x)", "np.load(x, allow_pickle=True)", "eval(x)"],
)
def test_the_rule_finds_what_it_forbids(tmp_path, text):
    (tmp_path / "x.py").write_text(text)
    assert len(list(complaints(tmp_path / "x.py"))) == 1
