"""CITATION.cff, as far as the Citation File Format 1.2.0 asks, and one version everywhere."""

import datetime
import re

import pytest
import yaml

import andscale

# of the format's schema: what these objects may hold, as far as we use it
TOP = {"cff-version", "message", "type", "title", "authors", "version", "date-released", "license", "keywords"}
REFERENCE = {"type", "title", "authors", "year", "collection-title", "conference"}


@pytest.fixture
def citation(repository):
    return yaml.safe_load((repository / "CITATION.cff").read_text())


def test_the_software_is_described_as_the_format_asks(citation):
    assert citation.keys() == TOP | {"preferred-citation"}
    assert (citation["cff-version"], citation["type"], citation["license"]) == ("1.2.0", "software", "MIT")
    assert all(author.keys() in ({"name"}, {"family-names", "given-names"}) for author in citation["authors"])
    assert isinstance(citation["date-released"], datetime.date)


def test_the_paper_is_what_is_to_be_cited(citation):
    paper = citation["preferred-citation"]
    assert paper.keys() == REFERENCE
    assert (paper["type"], paper["year"]) == ("conference-paper", 2019)
    assert paper["title"] == "Unsupervised Deep Learning by Neighbourhood Discovery"
    assert [author["family-names"] for author in paper["authors"]] == ["Huang", "Dong", "Gong", "Zhu"]


def test_package_citation_and_changelog_have_one_version(citation, repository):
    assert str(citation["version"]) == andscale.__version__
    heads = re.findall(r"^## \[(.+?)\](?: - (\S+))?$", (repository / "CHANGELOG.md").read_text(), re.MULTILINE)
    released = [head for head in heads if head[0] != "Unreleased"]
    assert released[0] == (andscale.__version__, citation["date-released"].isoformat())
