"""What README.md and docs/ hold besides prose: fenced blocks, and the commands in them."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHELLS = ("sh", "bash", "console")
LANGUAGES = (*SHELLS, "python", "toml", "text")


def name_of(path):
    return str(path.relative_to(ROOT))


@dataclass(frozen=True)
class Block:
    """A fenced block; ``line`` is that of its first line of content, ``title`` the file that it stands for."""

    page: Path
    line: int
    language: str
    title: str | None
    text: str

    def __str__(self):
        return f"{name_of(self.page)}:{self.line}"


def blocks(page):
    """Every fenced block of a page, in order."""
    found, inside = [], None
    for number, line in enumerate(page.read_text().splitlines(), 1):
        fence = re.fullmatch(r"```(\w*)\s*(?:title=\"([^\"]+)\")?", line)
        if inside is not None and line == "```":
            first, language, title, lines = inside
            found.append(Block(page, first, language, title, "\n".join(lines)))
            inside = None
        elif inside is not None:
            inside[3].append(line)
        elif fence:
            inside = (number + 1, fence[1], fence[2], [])
        else:
            assert not line.lstrip().startswith("```"), f"{name_of(page)}:{number}: a fence begins at the margin"
    assert inside is None, f"{name_of(page)}: a block without an end"
    return found


def unfenced(page):
    """Numbers of lines that are code by their indentation alone, where no language says what they are."""
    numbers, fenced, before, in_list = [], False, "", False
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.startswith("```"):
            fenced = not fenced
        elif not fenced and line.startswith("    ") and not before.strip() and not in_list:
            numbers.append(number)
        if line.strip() and not line.startswith(" "):
            in_list = bool(re.match(r"([-*]|\d+\.) ", line))
        before = line
    return numbers


def commands(block):
    """Every command of a shell block as words, without comments; of a console block what follows a ``$``."""
    lines = block.text.replace("\\\n", " ").splitlines()
    if block.language == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    for line in lines:
        words = shlex.split(line, comments=True)
        if not words:
            continue
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        special = {word for word in lexer if word and set(word) <= set("();<>|&")}
        assert not special, f"{block}: {line}: one command a line, and {special} in quotes"
        yield words
