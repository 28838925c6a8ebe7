"""Links of README.md, CHANGELOG.md and docs/ lead to files and headings that are there; README's tree is right."""

import re
from pathlib import Path

import pytest
from doc_blocks import PAGES, ROOT, name_of

PAGES_WITH_LINKS = [*PAGES, ROOT / "CHANGELOG.md"]


def prose(page):
    """A page without its fenced blocks and code spans."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "`code`", text)


def links(page):
    return [found.split(" ")[0] for found in re.findall(r"\]\(([^)]+)\)", prose(page))]


def anchors(page):
    """The anchors of a page's headings, as GitHub and the site's Markdown make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    found = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = re.sub(r"[`*]", "", heading).lower()
        slug = re.sub(r"[^\w\s-]", "", plain).strip()
        found |= {re.sub(r"[-\s]+", "-", slug), re.sub(r"\s", "-", slug)}
    return found


@pytest.mark.parametrize("page", PAGES_WITH_LINKS, ids=name_of)
def test_links_lead_somewhere(page):
    dead = []
    for link in links(page):
        if link.startswith(("https://", "http://")):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        if not target.is_file() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert not dead, f"{name_of(page)} links to what is not there: {dead}"


def test_every_page_is_reached_from_the_navigation():
    lines = [line for line in (ROOT / "mkdocs.yml").read_text().splitlines() if not line.strip().startswith("#")]
    named = set(re.findall(r"[\w/]+\.md", "\n".join(lines)))
    in_docs = [page.relative_to(ROOT / "docs") for page in PAGES if page.is_relative_to(ROOT / "docs")]
    assert {str(page) for page in in_docs} == named


def _names_in_the_tree():
    """(path) of every file and folder that README's tree lists."""
    lines = (ROOT / "README.md").read_text().partition("## The tree")[2].partition("```text\n")[2].partition("```")[0]
    folders: list[tuple[int, Path]] = []
    for line in lines.splitlines():
        indent = len(line) - len(line.lstrip())
        listed = re.split(r"\s{2,}", line.strip())[0]
        if indent > 20:  # a description that goes on
            continue
        folders = [(depth, folder) for depth, folder in folders if depth < indent]
        parent = folders[-1][1] if folders else ROOT
        for name in re.findall(r"[\w.*/-]+[\w*/]", re.sub(r"\(MIT\)|\.\.\.", "", listed)):
            yield parent / name
            if name.endswith("/"):
                folders.append((indent, parent / name))


def test_what_readmes_tree_lists_is_there():
    names = list(_names_in_the_tree())
    assert len(names) > 200
    assert not [str(name) for name in names if not list(name.parent.glob(name.name))]


def test_readmes_tree_lists_every_module():
    """But what a folder holds that is one line of the tree."""
    listed = {path for name in _names_in_the_tree() for path in name.parent.glob(name.name)}
    whole = {path for path in listed if path.is_dir() and not any(path in other.parents for other in listed)}
    modules = [path for part in ("andscale", "jobs", "tools", "benchmarks") for path in (ROOT / part).rglob("*.py")]
    found = [
        path for path in modules if path.name != "__init__.py" and path not in listed and not whole & {*path.parents}
    ]
    assert not [name_of(path) for path in found]
