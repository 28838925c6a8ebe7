"""The site builds without a warning and without a network, and what it shows comes from itself."""

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from doc_blocks import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    answer = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        # a proxy that nobody is behind: whatever asks the network fails
        env=os.environ
        | {"NO_MKDOCS_2_WARNING": "1", "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert not answer.stderr.strip(), "warnings: " + answer.stderr
    return folder


class Loaded(HTMLParser):
    """What a browser fetches for a page: scripts, styles, images, fonts, frames; not what one may click on."""

    def __init__(self):
        super().__init__()
        self.urls = []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag == "link" and given.get("rel") not in ("prev", "next", "canonical"):
            self.urls.append(given.get("href"))
        elif tag != "a":
            self.urls += [given.get("src"), given.get("srcset"), given.get("data"), given.get("poster")]
        if "style" in given:
            self.urls += re.findall(r"url\(([^)]+)\)", given["style"] or "")


def loaded_by(text):
    parser = Loaded()
    parser.feed(text)
    styles = re.findall(
        r"url\([\"']?([^)\"']+)|@import\s+[\"']([^\"']+)", "".join(re.findall(r"<style>.*?</style>", text, re.DOTALL))
    )
    return [url for url in (*parser.urls, *(a or b for a, b in styles)) if url]


def is_elsewhere(url):
    return bool(re.match(r"(https?:)?//", url))


def test_pages_load_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    found = {(page.name, url) for page in pages for url in loaded_by(page.read_text()) if is_elsewhere(url)}
    assert not found
    assert sum(len(loaded_by(page.read_text())) for page in pages) > 100, "nothing was looked at"


def test_styles_and_figures_load_nothing_from_elsewhere(site):
    for path in [*site.rglob("*.css"), *site.rglob("*.svg")]:
        text = path.read_text()
        urls = re.findall(r"url\(\s*[\"']?([^)\"']+)", text) + re.findall(r"(?:xlink:)?href=\"([^\"]+)", text)
        urls += re.findall(r"@import\s+[\"']([^\"']+)", text)
        assert not [url for url in urls if is_elsewhere(url)], path


def test_no_page_asks_for_what_the_theme_would_fetch(site):
    """Material's script fetches mermaid and MathJax for pages that have diagrams or formulas of these kinds."""
    for page in site.rglob("*.html"):
        assert not re.search(r"class=\"(mermaid|arithmatex)|unpkg\.com|cdn\.|fonts\.g", page.read_text()), page


def test_what_is_loaded_is_there(site):
    for page in site.rglob("*.html"):
        for url in loaded_by(page.read_text()):
            if not url.startswith(("data:", "#")) and page.name != "404.html":
                assert (page.parent / url.partition("?")[0].partition("#")[0]).exists(), f"{page}: {url}"


def test_figures_are_what_their_script_draws():
    path = ROOT / "docs" / "figures" / "draw.py"
    spec = importlib.util.spec_from_file_location("draw_figures", path)
    drawing = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(drawing)
    for name, draw in drawing.FIGURES.items():
        assert (path.parent / f"{name}.svg").read_text() == draw(), f"run python {path.relative_to(ROOT)}"


def test_the_curriculum_of_the_figure_is_the_equations():
    text = (ROOT / "docs" / "figures" / "curriculum.svg").read_text()
    counts = [text.count(f'class="{kind}"') for kind in ("anchor", "instance")]
    assert counts == [sum(20 * r // 4 for r in range(5)), 100 - sum(20 * r // 4 for r in range(5))]


def test_the_page_of_commands_names_every_command(site):
    from andscale.cli import app

    page = (site / "reference" / "commands.html").read_text()
    for command in app.registered_commands:
        assert f"andscale {command.name}" in page
    assert "Usage: launch_round.py" in page, "the help texts are put in"


def test_settings_and_functions_are_described(site):
    settings = (site / "reference" / "settings.html").read_text()
    assert "global_batch_size" in settings and "Largest number of samples of one step" in settings
    assert "floor(N r/R) samples of lowest entropy" in settings
    assert "load_model" in (site / "reference" / "index.html").read_text()
