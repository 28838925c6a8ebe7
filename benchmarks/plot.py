"""How time grows with the number of samples, drawn."""

from pathlib import Path

_OURS = "#c1272d"
_OTHERS = ("#4c72b0", "#55a868", "#8172b2", "#8c8c8c")
_MARKERS = ("s", "^", "D", "v")


def plot_growth(growth: dict[str, dict[int, float | None]], path: Path, caption: str, ours: str) -> list[Path]:
    """Draw seconds over N on logarithmic axes, a line a method; points that were not run are absent.

    Args:
        growth: seconds by method and N.
        path: without suffix; ``.svg`` and ``.png`` are written.
        caption: machine and settings, under the title.
        ours: the method whose line stands out.

    Returns:
        The files written.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # the same bytes for the same figures
    mpl.rcParams["svg.hashsalt"] = "andscale"
    figure = Figure(figsize=(8, 5.2), layout="constrained")
    axes = figure.add_subplot()
    others = iter(zip(_OTHERS, _MARKERS, strict=True))
    for name, points in growth.items():
        known = {n: seconds for n, seconds in points.items() if seconds is not None}
        if name == ours:
            style = {"color": _OURS, "marker": "o", "linewidth": 3, "markersize": 8, "zorder": 3}
        else:
            color, marker = next(others)
            style = {"color": color, "marker": marker, "linewidth": 1.6}
        axes.plot(list(known), list(known.values()), label=name, **style)
    sizes = sorted({n for points in growth.values() for n in points})
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(sizes, [f"{n:,}" for n in sizes])
    axes.xaxis.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("samples N")
    axes.set_ylabel("seconds")
    axes.set_title(f"Neighbours of all samples among all\n{caption}", fontsize=10)
    axes.grid(which="major", alpha=0.3)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_suffix(".svg"), path.with_suffix(".png")]
    for file in files:
        figure.savefig(file, dpi=150, metadata={"Date": None} if file.suffix == ".svg" else None)
    return files
