# ruff: noqa: D301 - paragraphs from backslash-b
"""The commands that draw pictures of rounds; what they need is imported when they run."""

from pathlib import Path
from typing import Annotated

import typer

from andscale.cli_launch import RunOption
from andscale.errors import UsageError

OutOption = Annotated[Path, typer.Option("--out", metavar="FILE", help="The picture: .png or .svg.")]


def draw_attention(
    ids: Annotated[str, typer.Option("--ids", metavar="1,2,3", help="Training images, by sample id.")],
    out: OutOption,
    run: RunOption = None,
) -> None:
    """Draw where the network looks, round by round, in chosen training images (Grad-CAM; needs andscale[maps]).

    \b
    Example: python tools/attention.py --run runs/fashion_mnist_demo --ids 1,2,3 --out attention.png
    """
    from andscale.audit.attention import write_attention
    from andscale.orchestration.launch import resolve_run

    try:
        sample_ids = [int(word) for word in ids.split(",")]
    except ValueError:
        raise UsageError(f"--ids {ids}: sample ids with commas between, as 1,2,3") from None
    rounds = write_attention(resolve_run(run), sample_ids, out)
    print(f"wrote {out}: {len(sample_ids)} images, rounds {', '.join(map(str, rounds))}")


def draw_map(
    out: OutOption,
    run: RunOption = None,
    round_number: Annotated[int | None, typer.Option("--round", min=0, help="The newest by default.")] = None,
    colour: Annotated[str, typer.Option("--colour", help="label, entropy, anchor or round (since when).")] = "label",
) -> None:
    """Draw a 2-D map of a round's features (UMAP; 50,000 drawn samples of more; needs andscale[maps]).

    \b
    Example: python tools/map.py --run runs/fashion_mnist_demo --round 2 --colour entropy --out map.png
    """
    from andscale.audit.maps import write_map
    from andscale.orchestration.launch import resolve_run

    print(f"wrote {out}: {write_map(resolve_run(run), round_number, colour, out)}")
