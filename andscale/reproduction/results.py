"""What a table's runs measured, beside the published numbers: Markdown, a figure, JSON."""

import json
import statistics
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from andscale.audit.attention import write_comparison
from andscale.audit.round_figures import rounds_table
from andscale.errors import RunError
from andscale.evaluation.record import read_evaluation
from andscale.reproduction.accounts import commits, manifests, rank_seconds, trained_round_0, training_ranks
from andscale.reproduction.curves import curves_markdown, draw_curves, epochs_until, spread
from andscale.reproduction.plan import Plan, PlannedRun, arms_of, columns_of, planned_runs, stand_in
from andscale.reproduction.tables import Column
from andscale.store.files import write_file
from andscale.store.run_layout import RunLayout

_ACCURACY = "Top-1 accuracy in percent after the last round"
_LOOKED_AT = 6
"""Training images whose maps are drawn, the first ones."""
_ANCHORS = "Percent of a round's anchors, consistent where all of their neighbours have the anchor's label"


def collect(plan: Plan) -> dict[str, Any]:
    """Every value of a table whose runs are all complete, as plain JSON values.

    Raises:
        RunError: a run is not complete or damaged, or has no figure that the table has.
    """
    runs = planned_runs(plan)
    rows = _rounds(plan, runs) if plan.table.per_round else []
    for arm in () if plan.table.per_round else arms_of(plan):
        mine = [run for run in runs if run.arm == arm]
        found = [_figures(run, columns_of(plan)) for run in mine]
        cells = {c.heading: [values[c.heading] for values in found] for c in columns_of(plan)}
        rows.append(
            {
                "label": arm.label,
                "values": cells,
                "published": {name: list(known) for name, known in arm.published.items()},
                "stand_in": stand_in(arm) if plan.scale == "smoke" else None,
                "runs": [_run_record(run) for run in mine],
            }
            | ({"rounds": _every_round(mine, columns_of(plan))} if plan.table.compared else {})
        )
    devices = {str(m.figures.get("device", "")) for run in runs for m in manifests(run)}
    on_gpus = any(device.startswith("cuda") for device in devices)
    return {
        "table": plan.table.name,
        "title": plan.table.title,
        "what": _ANCHORS if plan.table.per_round else _ACCURACY,
        "scale": plan.scale,
        "seeds": plan.seeds,
        "settings": list(plan.overrides),
        "left_out": [arm.label for arm in plan.table.arms if arm not in arms_of(plan)],
        "rank_hours": rank_seconds(runs) / 3600,
        "rank": "GPU" if on_gpus else "process",
        "commits": commits(runs),
        "rows": rows,
    } | ({"compared": list(plan.table.compared)} if plan.table.compared else {})


def markdown(record: dict[str, Any], command: str) -> str:
    """The table as Markdown: percent, mean and standard deviation over seeds, published numbers beside."""
    headings = list(record["rows"][0]["values"])
    lines = [f"# {record['table']}: {record['title']}", ""]
    if record["scale"] == "smoke":
        used = sorted({row["stand_in"] for row in record["rows"]})
        lines += [
            f"**This is a smoke run, not a reproduction**: tiny settings on stand-ins ({', '.join(used)}) in place of "
            "the data sets, and a small network where the network is not the point. It shows that the command works.",
            "",
        ]
    if record["left_out"]:
        lines += [f"Left out, as nothing stands in for their data: {', '.join(record['left_out'])}.", ""]
    of_the_paper = "compared" not in record
    header = ["", *(text for name in headings for text in (name, "published")[: 1 + of_the_paper])]
    lines += [_row(header), _row(["---", *(["---:"] * (len(header) - 1))])]
    for row in record["rows"]:
        lines.append(_row([row["label"], *(c for n in headings for c in _cells(row, n)[: 1 + of_the_paper])]))
    sources = sorted({source for row in record["rows"] for _, source in row["published"].values()})
    counts = {len(values) for row in record["rows"] for values in row["values"].values()}
    seeds = f"{max(counts)} seeds" if max(counts) > 1 else "1 seed, so without a spread"
    seeds += ", rows without a spread of one" if len(counts) > 1 else ""
    lines += ["", f"{record['what']}; mean ± standard deviation over {seeds}."]
    if of_the_paper:
        lines += [f"Published: {'; '.join(sources)}." if sources else "Published numbers: not at hand.", ""]
    else:
        lines.append("")
        for heading in headings:
            lines += [*curves_markdown(record["rows"], heading, record["compared"]), ""]
        lines += ["The last row of each is the difference seed by seed, then its mean ± standard deviation.", ""]
    lines += [
        f"- Command: `{command}`",
        f"- {record['rank'].capitalize()} hours: {record['rank_hours']:.2f}, a shared round 0 counted once; of jobs "
        "that went on after a stop, last attempts only",
        f"- Commits: {', '.join(record['commits'])}",
        *_unlike_ranks(record),
    ]
    seen: dict[str, str] = {}
    for row in record["rows"]:
        for r in row["runs"]:
            seen.setdefault(f"seed {r['seed']}: `{r['run']}`, config {r['config_hash']}", row["label"])
    lines += [f"- {label}, {run}" for run, label in seen.items()]
    return "\n".join(lines) + "\n"


def write_results(plan: Plan, out: Path, command: str) -> list[Path]:
    """Write ``TABLE-SCALE.md``, ``.json`` and, where matplotlib is there, ``.svg``; returns what was written."""
    record, stem = collect(plan), f"{plan.table.name}-{plan.scale}"
    written = [out / f"{stem}.md", out / f"{stem}.json"]
    write_file(written[0], markdown(record, command).encode())
    write_file(written[1], (json.dumps(record | {"command": command}, indent=2) + "\n").encode())
    if not (find_spec("matplotlib") and find_spec("pytorch_grad_cam")):
        print("no figure: matplotlib or grad-cam is not here, install andscale[maps]")
        return written
    written.append(out / f"{stem}.svg")
    if plan.table.draws_attention:
        runs = {run.arm.label: run for run in planned_runs(plan) if run.seed == 0}
        models = {label: (run.root, run.config.method.last_round) for label, run in runs.items()}
        write_comparison(models, list(range(_LOOKED_AT)), written[-1])
    elif plan.table.compared:
        draw_curves(record, written[-1])
    else:
        _draw(record, written[-1])
    return written


def _figures(run: PlannedRun, columns: tuple[Column, ...], round_number: int | None = None) -> dict[str, float]:
    """Heading -> percent, of a round of the run; None: its last one."""
    number = run.config.method.last_round if round_number is None else round_number
    folder = RunLayout(run.root).round(number).evaluation
    evaluation, _ = read_evaluation(folder)
    values = {}
    for column in columns:
        value: Any = evaluation
        for key in column.keys:
            value = value.get(key) if isinstance(value, dict) else None
        if not isinstance(value, float):
            raise RunError(f"{folder} has no {'.'.join(column.keys)}, which column {column.heading!r} shows")
        values[column.heading] = 100 * value
    return values


def _every_round(runs: list[PlannedRun], columns: tuple[Column, ...]) -> list[dict[str, Any]]:
    """What the runs of a row, one a seed, measured after each round that they evaluated: ``epochs`` and ``values``."""
    rounds = []
    for number in runs[0].rounds:
        found = [_figures(run, columns, number) for run in runs]
        values = {c.heading: [figures[c.heading] for figures in found] for c in columns}
        rounds.append({"epochs": epochs_until(runs[0], number), "values": values})
    return rounds


def _rounds(plan: Plan, runs: list[PlannedRun]) -> list[dict[str, Any]]:
    """A row for each round that has anchors: shares of consistent and inconsistent ones (the paper's figure 6)."""
    for run in runs:
        manifests(run)  # a run that is not complete is named
    tables = [rounds_table(run.root) for run in runs]
    rows = []
    for rounds in zip(*tables, strict=True):
        unlabelled = [run.root for run, r in zip(runs, rounds, strict=True) if r["consistent"] is None]
        if unlabelled:
            raise RunError(f"{unlabelled[0]}: its samples have no labels, so no anchor is known to be consistent")
        values = {c.heading: [100 * r[c.heading] / r["num_anchors"] for r in rounds] for c in columns_of(plan)}
        rows.append(
            {
                "label": f"round {rounds[0]['round']}",
                "values": values,
                "published": {},
                "stand_in": stand_in(plan.table.arms[0]) if plan.scale == "smoke" else None,
                "runs": [_run_record(run) for run in runs],
            }
        )
    return rows


def _run_record(run: PlannedRun) -> dict[str, Any]:
    return {
        "run": str(run.root),
        "seed": run.seed,
        "config_hash": run.config.digest(),
        "round_0_of": trained_round_0(run),
        "training_ranks": training_ranks(run),
    }


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _unlike_ranks(record: dict[str, Any]) -> list[str]:
    """A line where runs were trained by unlike numbers of ranks, which no config's hash shows."""
    by_ranks: dict[tuple[int, ...], dict[str, None]] = {}
    for row in record["rows"]:
        for r in row["runs"]:
            by_ranks.setdefault(tuple(r["training_ranks"]), {})[f"{row['label']}, seed {r['seed']}"] = None
    if len({number for numbers in by_ranks for number in numbers}) < 2:
        return []
    who = [f"{' and '.join(map(str, numbers))} for {'; '.join(labels)}" for numbers, labels in sorted(by_ranks.items())]
    why = "batch norm sees a rank's share of a batch, so this changes results beside the settings"
    return [f"- **Unlike numbers of ranks in training** ({why}): {'. '.join(who)}"]


def _cells(row: dict[str, Any], heading: str) -> tuple[str, str]:
    values = row["values"][heading]
    known = row["published"].get(heading)
    return spread(values), f"{known[0]:.1f}" if known else "not at hand"


def _draw(record: dict[str, Any], out: Path) -> None:
    """Our values as bars with their spread, the published numbers as marks; a panel a column."""
    from matplotlib.figure import Figure

    rows, headings = record["rows"], list(record["rows"][0]["values"])
    figure = Figure((1.5 + 2.2 * len(headings), 1.2 + 0.35 * len(rows)), layout="constrained")
    panels = figure.subplots(1, len(headings), squeeze=False, sharey=True)[0]
    for heading, panel in zip(headings, panels, strict=True):
        for place, row in enumerate(rows):
            values = row["values"][heading]
            panel.barh(place, statistics.mean(values), color="#4878a8", height=0.6)
            panel.plot([min(values), max(values)], [place, place], color="black", linewidth=1)
            if heading in row["published"]:
                panel.plot(row["published"][heading][0], place, "D", color="#c04030", markersize=5)
        panel.set_xlabel(f"{heading}, %")
        panel.set_xlim(0, 100)
    panels[0].set_yticks(range(len(rows)), [row["label"] for row in rows])
    panels[0].invert_yaxis()
    figure.suptitle(f"{record['table']}, {record['scale']} (bars: ours, line: min to max; diamonds: published)", size=8)
    figure.savefig(out)
