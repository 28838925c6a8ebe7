"""The commands. ``jobs/`` and ``tools/`` are thin doors to them; what they need is imported when they run."""

import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from andscale.cli_audit import inspect_neighbours
from andscale.cli_launch import RunOption, cancel_run, launch_round, show_status
from andscale.cli_maps import draw_attention, draw_map
from andscale.cli_reproduce import reproduce_table
from andscale.cli_serve import serve_neighbourhoods
from andscale.errors import AndscaleError, UsageError
from andscale.spelling import spell_all

app = typer.Typer(
    name="andscale",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

_INTERRUPTED = 130

RoundOption = Annotated[int, typer.Option("--round", min=0, help="Round number.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        import andscale
        from andscale.store.provenance import source_commit

        commit = source_commit()
        print(f"andscale {andscale.__version__}" + (f", commit {commit}" if commit else ""))
        raise typer.Exit()


@app.callback()
def _program(
    _: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it, and the commit.")
    ] = False,
) -> None:
    """Image features without labels, by Anchor Neighbourhood Discovery."""


launch_command = app.command("launch")(launch_round)
status_command = app.command("status")(show_status)
cancel_command = app.command("cancel")(cancel_run)
inspect_command = app.command("inspect")(inspect_neighbours)
serve_command = app.command("serve")(serve_neighbourhoods)
reproduce_command = app.command("reproduce")(reproduce_table)
attention_command, map_command = app.command("attention")(draw_attention), app.command("map")(draw_map)


@app.command("train")
def train_round(round_number: RoundOption, run: RunOption = None) -> None:
    """Train one round in this process, or on every rank that torchrun starts.

    \b
    Example: torchrun --nproc-per-node 2 -- jobs/train_round.py --run runs/fashion_mnist_demo --round 0
    """
    from andscale.distributed import world_from_environment
    from andscale.indexing.kmeans import cluster_features
    from andscale.orchestration.launch import resolve_run
    from andscale.training.loop import train_round as train

    train(resolve_run(run), round_number, world_from_environment(), clustering=cluster_features)


@app.command("rebuild")
def rebuild_index(round_number: RoundOption, run: RunOption = None) -> None:
    """Find the neighbourhoods and entropies of the memory that the round before left, and pick the anchors; in this
    process, or on every rank that torchrun starts.

    \b
    Example: python jobs/rebuild_index.py --run runs/fashion_mnist_demo --round 1
    """
    from andscale.audit.round_events import write_index_events
    from andscale.distributed import world_from_environment
    from andscale.indexing.rebuild import rebuild_index as rebuild
    from andscale.orchestration.launch import resolve_run

    root, world = resolve_run(run), world_from_environment()
    rebuild(root, round_number, world)
    if world.is_main:
        write_index_events(root, round_number)


@app.command("evaluate")
def evaluate_round(round_number: RoundOption, run: RunOption = None) -> None:
    """Measure a round's model on the validation split, by weighted kNN and, where the config asks for them, by linear
    classifiers on its layers; in this process, or on every rank that torchrun starts.

    \b
    Example: python jobs/evaluate_round.py --run runs/fashion_mnist_demo --round 0
    """
    from andscale.audit.round_events import write_evaluation_events
    from andscale.distributed import world_from_environment
    from andscale.evaluation.evaluate import evaluate_round as evaluate
    from andscale.orchestration.launch import resolve_run

    root, world = resolve_run(run), world_from_environment()
    evaluate(root, round_number, world)
    if world.is_main:
        write_evaluation_events(root, round_number)


@app.command("discover")
def discover(
    features: Annotated[Path, typer.Argument(metavar="FEATURES", help=".npy, .parquet, or a folder of .parquet.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; must not exist.")],
    num_neighbours: Annotated[int, typer.Option("--k", help="Neighbours a sample.")] = 1,
    temperature: Annotated[float, typer.Option("--temperature", help="tau of the similarity distribution.")] = 0.1,
    num_rounds: Annotated[int | None, typer.Option("--rounds", min=1, help="R of the curriculum.")] = None,
    round_number: Annotated[
        int | None, typer.Option("--round", min=0, help="r: floor(N r/R) samples become anchors.")
    ] = None,
    column: Annotated[str | None, typer.Option("--column", help="The list column, if there are several.")] = None,
    mode: Annotated[
        str, typer.Option("--mode", help="exact, approximate, or auto: exact if it takes an hour at most.")
    ] = "auto",
) -> None:
    """Neighbourhoods and entropies of any features: the same table as a run's, without ever training.

    \b
    Example: python tools/discover.py features.npy neighbourhoods --k 10 --temperature 0.1
    """
    from andscale.indexing.discover import DiscoverRequest, as_mode, describe, discover_features

    request = DiscoverRequest(num_neighbours, temperature, round_number, num_rounds, column, as_mode(mode))
    print(describe(discover_features(features, out, request), out))


@app.command("export")
def export_onnx(
    model: Annotated[Path, typer.Argument(metavar="RUN_OR_FOLDER", help="A run, a round's folder, or a model/.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The .onnx file to write; must not exist.")],
    round_number: Annotated[
        int | None, typer.Option("--round", min=0, help="Of a run; the newest with a model by default.")
    ] = None,
) -> None:
    """Write a trained network as ONNX, compared with torch before it appears.

    Input: images (B, 3, S, S) float32, normalised; output: features (B, D), unit length. Mean, std and crop are in the
    file's metadata.

    \b
    Example: python tools/export_onnx.py runs/fashion_mnist_demo network.onnx
    """
    from andscale.training.onnx_export import export_onnx as export

    difference = export(model, out, round_number)
    print(f"wrote {out}: onnxruntime and torch differ by at most {difference:.1e} a component")


@app.command("prepare")
def prepare_shards(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Name of a raw data set, see below.")],
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FOLDER] OUT", help="Where the raw files lie, and the folder to write."),
    ] = None,
    samples_per_shard: Annotated[int, typer.Option(min=1, help="Images a shard.")] = 8192,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; one a core by default.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave unreadable images out and record them.")] = False,
    hold_out: Annotated[
        int | None,
        typer.Option(
            "--hold-out", metavar="N", help="Make N training images val, to choose settings without the test."
        ),
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Only check every hash of OUT.")] = False,
) -> None:
    """Turn a raw data set into WebDataset shards with a catalogue; an interrupted run goes on where it was.

    Sources: fashion-mnist, digits, cifar10, cifar100, svhn (a FOLDER with their original files, or a download);
    imagenet, cub200, dogs (a FOLDER with their original archives, which are read in place, or with what these unpack
    to); image-folder (FOLDER/train/CLASS/*, FOLDER/val/CLASS/*, or a flat FOLDER without labels). What differs from
    the published data set is named.

    \b
    Example: python tools/prepare_shards.py fashion-mnist data/fashion-mnist
    """
    from andscale.data.prepare import PrepareOptions, prepare
    from andscale.data.shards import verify_dataset

    given = paths or ([Path(source)] if verify else [])  # prepare_shards.py --verify OUT needs no source
    if not 1 <= len(given) <= 2:
        raise UsageError(f"{len(given)} folders given: OUT, or FOLDER and OUT")
    folder, out = given[0] if len(given) == 2 else None, given[-1]
    if verify:
        dataset = verify_dataset(out)
    else:
        dataset = prepare(source, folder, out, PrepareOptions(samples_per_shard, workers, skip_bad, hold_out))
    counts = ", ".join(f"{split.num_samples:,} {name}" for name, split in dataset.splits.items())
    print(f"{'every hash is right' if verify else 'prepared'}: {dataset.root} ({counts})")


@app.command("doctor")
def doctor(
    run: Annotated[Path | None, typer.Option("--run", help="Where runs are written; runs/ by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Findings as JSON.")] = False,
) -> None:
    """Look at this machine: packages, GPUs, FAISS, collectives, Slurm, disk; every complaint comes with its fix.

    What can be tried is tried: a search on GPUs against the CPU's, an all-reduce of two processes, writes, renames and
    locks in the run's folder. The exit code is 1 when there is a problem; warnings do not count.

    \b
    Example: python tools/doctor.py --run runs/fashion_mnist_demo
    """
    from andscale.doctor.examine import as_json as to_json
    from andscale.doctor.examine import as_line, examine, is_healthy, summary

    findings = []
    for finding in examine(run or Path("runs")):
        findings.append(finding)
        if not as_json:
            print(as_line(finding), flush=True)
    print(to_json(findings) if as_json else summary(findings))
    if not is_healthy(findings):
        raise typer.Exit(1)


@app.command("demo")
def demo(
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Where Fashion-MNIST's IDX files lie already.")
    ] = None,
) -> None:
    """Fashion-MNIST from raw files to a table of three rounds, on this machine.

    \b
    Example: python tools/demo.py
    """
    from andscale.orchestration.demo import run_demo

    run_demo(folder)


def call(name: str | None = None, arguments: list[str] | None = None) -> int:
    """Run a command line and return its exit code; errors become one line on standard error.

    Args:
        name: a command that the arguments are for; None takes the command's name from the arguments.
        arguments: ``sys.argv[1:]`` by default.
    """
    command: Any = typer.main.get_command(app)
    for each in command.commands.values():
        each.help = spell_all(each.help)
    program = app.info.name
    if name is not None:
        command, program = command.commands[name], Path(sys.argv[0]).name
    try:
        result = command.main(arguments, prog_name=program, standalone_mode=False)
    except AndscaleError as error:
        return _fail(str(error), error.exit_code)
    except typer.TyperException as error:
        return _fail(f"{error.format_message()} (see {program} --help)", error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        result = _INTERRUPTED
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", 1)
    if result == _INTERRUPTED:  # typer's own answer to Ctrl-C, too
        return _fail("stopped; the same command goes on from what is done", _INTERRUPTED)
    return result if isinstance(result, int) else 0


def main() -> NoReturn:
    """The console script ``andscale``."""
    sys.exit(call())


def _fail(message: str, code: int) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code
