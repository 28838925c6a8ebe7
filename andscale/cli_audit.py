# ruff: noqa: D301, PLR0913, PLR0917 - typer takes options from arguments, and paragraphs from backslash-b
"""The command that audits neighbourhoods; what it needs is imported when it runs."""

from pathlib import Path
from typing import Annotated

import typer

from andscale.cli_launch import RunOption


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
    from andscale.audit.command import AuditRequest, audit
    from andscale.orchestration.launch import resolve_run
    from andscale.store import artifacts

    place = run if run is not None and artifacts.is_complete(run) else resolve_run(run)
    audit(
        AuditRequest(
            place=place,
            round_number=round_number,
            known=known,
            as_json=as_json,
            csv=csv_folder,
            html=html,
            by=by,
            exported=exported,
            leakage=leakage,
            near_duplicate=near_duplicate,
            min_purity=min_purity,
        )
    )
