# ruff: noqa: D301, PLR0913, PLR0917 - typer takes options from arguments, and paragraphs from backslash-b
"""The command that audits neighbourhoods; what it needs is imported when it runs."""

from pathlib import Path
from typing import Annotated

import typer

from andscale.cli_launch import RunOption
from andscale.errors import RunError, UsageError


def inspect_neighbours(
    run: RunOption = None,
    round_number: Annotated[int | None, typer.Option("--round", min=0, help="The newest by default.")] = None,
    known: Annotated[
        Path | None,
        typer.Option("--dataset", help="Of a table without a run: its prepared data set, or a .npy file of labels."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Figures as JSON.")] = False,
    csv_folder: Annotated[Path | None, typer.Option("--csv", metavar="DIR", help="Write tables as CSV files.")] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a report with images.")] = None,
    by: Annotated[int | None, typer.Option("--by", metavar="ID", help="Show one sample through the rounds.")] = None,
    exported: Annotated[
        str | None,
        typer.Option("--export", metavar="FORMAT:PATH", help="atlas, cleanlab, fiftyone or parquet."),
    ] = None,
    leakage: Annotated[
        bool, typer.Option("--leakage", help="Look for validation images among the training images; embeds both.")
    ] = False,
    near_duplicate: Annotated[
        float, typer.Option("--near-duplicate", metavar="S", help="Similarity of near-duplicates.")
    ] = 0.98,
    min_purity: Annotated[
        float | None,
        typer.Option("--min-purity", metavar="P", help="Exit with 1 when purity@1 of the anchors is lower."),
    ] = None,
) -> None:
    """Audit a round's neighbourhoods: purity, entropy, hubs, near-duplicates, rounds; --run may also name a table that
    tools/discover.py wrote.

    \b
    Example: python tools/inspect_neighbours.py --run runs/fashion_mnist_demo --round 2 --html report.html
    """
    import json

    from andscale.audit.audit_text import audit_text, history_text
    from andscale.audit.inspecting import inspect_subject, purity_of_anchors, write_csv
    from andscale.audit.leakage import find_leaks
    from andscale.audit.round_figures import history
    from andscale.audit.subject import open_subject
    from andscale.orchestration.launch import resolve_run
    from andscale.store import artifacts

    place = run if run is not None and artifacts.is_complete(run) else resolve_run(run)
    if by is not None:
        found = history(place, by, round_number, known)
        print(json.dumps(found, indent=2) if as_json else history_text(found))
        return
    subject = open_subject(place, round_number, known)
    if exported is not None:
        from andscale.audit.exports import export

        print(export(subject, exported))
        return
    if leakage and subject.round_number is None:
        raise UsageError(f"{place} is a table without a run: --leakage needs a run's model")
    inspected = inspect_subject(subject, near_duplicate, known)
    if leakage:
        inspected["leakage"] = find_leaks(place, None, near_duplicate, known)
    print(json.dumps(inspected, indent=2) if as_json else audit_text(inspected))
    if csv_folder is not None:
        names = ", ".join(path.name for path in write_csv(inspected, csv_folder))
        typer.echo(f"wrote {csv_folder}: {names}", err=as_json)
    if html is not None:
        from andscale.audit.report import write_report

        write_report(subject, html)
        typer.echo(f"wrote {html}", err=as_json)
    if min_purity is not None and (purity := purity_of_anchors(inspected)) < min_purity:
        raise RunError(f"purity@1 of the anchors of {place} is {purity:.4f}, wanted is {min_purity} (--min-purity)")
