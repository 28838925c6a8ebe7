"""Numbers that the documentation repeats are those of the code, or of the page that measured them."""

import re

from doc_blocks import ROOT

from andscale.config_resources import ResourcesConfig
from andscale.service.guard import Limits

DOCS = ROOT / "docs"


def rows(text):
    """Cells of every table row."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]


def test_the_demos_table_is_the_same_in_readme_and_in_the_first_five_minutes():
    first = [row for row in rows((DOCS / "start.md").read_text()) if row[0] in "012"]
    readme = rows((ROOT / "README.md").read_text())
    assert len(first) == 3
    assert all(row in readme for row in first)
    (random_weights,) = re.findall(r"random weights: ([\d.]+)\)", (ROOT / "README.md").read_text())
    assert f"Random weights reach {random_weights} here" in (DOCS / "start.md").read_text()


def test_defaults_in_the_table_of_resources_are_the_codes():
    table = {row[0]: row[-1] for row in rows((DOCS / "slurm.md").read_text()) if row[0].startswith("`")}
    shown = {name: value for names, value in table.items() for name in re.findall(r"`(\w+)`", names)}
    for name, field in ResourcesConfig.model_fields.items():
        assert name in shown, f"slurm.md does not say what resources.{name} is"
        if field.default is not None:
            assert shown[name] == str(field.default), name
        else:
            assert shown[name] in ("not set", "Slurm's"), name


def test_the_services_limits_are_the_codes():
    text, limits = " ".join((DOCS / "service.md").read_text().split()), Limits()
    for words in (
        f"{limits.neighbours:,} neighbours",
        f"{limits.queries:,} vectors at once",
        f"bodies of {limits.body_bytes >> 20} MiB",
        f"{limits.concurrency} requests are answered",
    ):
        assert words in text


def test_routes_in_the_table_are_the_services():
    """And the service has none that the table leaves out."""
    source = "".join(path.read_text() for path in (ROOT / "andscale" / "service").glob("*.py"))
    routes = set(re.findall(r"\"(/v1/[\w/{}]+|/healthz|/metrics)\"", source))
    text = (DOCS / "service.md").read_text().replace("`/thumbnail`", "`/v1/samples/{sample_id}/thumbnail`")
    assert routes and not [route for route in routes if f"{route}`" not in text]
