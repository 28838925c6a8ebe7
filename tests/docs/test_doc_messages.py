"""docs/troubleshooting.md quotes messages that the code has."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"


def _texts(node):
    """The text of a string, what is put in at run time as an ellipsis; None for anything else."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(part.value if isinstance(part, ast.Constant) else "…" for part in parts)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return (_texts(left) or "…") + (_texts(right) or "…")
    return None


def messages_of_the_code():
    """Every text in andscale/ and in tools/*.sh."""
    found = [(ROOT / "tools" / "make_environment.sh").read_text()]
    for path in (ROOT / "andscale").rglob("*.py"):
        found += [text for node in ast.walk(ast.parse(path.read_text())) if (text := _texts(node))]
    return [re.sub(r"\s+", " ", text) for text in found]


def quoted_messages():
    """The first cells of tables that begin with a quoted message."""
    heads = re.findall(r"^\| `([^`]+)` \|", PAGE.read_text(), re.MULTILINE)
    return [message for message in heads if " " in message]


def test_every_quoted_message_is_in_the_code():
    texts = messages_of_the_code()
    gone = [message for message in quoted_messages() if not any(message in text for text in texts)]
    assert not gone, "troubleshooting.md quotes what the code no longer says: " + "; ".join(gone)


def test_the_page_has_the_messages():
    assert len(quoted_messages()) > 60
    assert any("no Slurm controller answers" in message for message in quoted_messages())


def test_slurms_reasons_are_those_that_the_code_knows():
    texts = messages_of_the_code()
    for reason in ("launch failed requeued held", "DependencyNeverSatisfied"):
        assert reason in PAGE.read_text() and reason in texts
