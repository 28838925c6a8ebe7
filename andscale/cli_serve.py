# ruff: noqa: D301, PLR0913, PLR0917 - typer takes options from arguments, and paragraphs from backslash-b
"""The command that serves neighbourhoods; what it needs is imported when it runs."""

from pathlib import Path
from typing import Annotated

import typer

from andscale.cli_launch import RunOption


def serve_neighbourhoods(
    run: RunOption = None,
    round_number: Annotated[
        int | None, typer.Option("--round", min=0, help="The newest by default, and newer ones as they come.")
    ] = None,
    known: Annotated[
        Path | None,
        typer.Option("--dataset", help="Of a table without a run: its prepared data set, or a .npy file of labels."),
    ] = None,
    features: Annotated[
        Path | None, typer.Option("--features", help="Of a table without a run: what it was made from, to search.")
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address; another than loopback needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="0 takes a free one.")] = 8765,
    token: Annotated[
        str | None, typer.Option("--token", help="What clients must bring; better as ANDSCALE_TOKEN.")
    ] = None,
) -> None:
    """Serve a round's neighbourhoods over HTTP, with a page to walk them; --run may also name a table that
    tools/discover.py wrote. The API is described under /docs.

    \b
    Example: python tools/serve.py --run runs/fashion_mnist_demo --port 8765
    """
    from andscale.orchestration.launch import resolve_run
    from andscale.service.serve import ServeRequest, serve, token_from_environment
    from andscale.store import artifacts

    place = run if run is not None and artifacts.is_complete(run) else resolve_run(run)
    serve(
        ServeRequest(
            place=place,
            round_number=round_number,
            known=known,
            features=features,
            host=host,
            port=port,
            token=token_from_environment(token),
        )
    )
