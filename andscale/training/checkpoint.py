"""Checkpoints, and artefacts that all ranks write together.

A checkpoint is an artefact like any other: ``checkpoints/epoch-0003/`` (at the start of epoch 3) or
``epoch-0003-step-000120/`` (120 of its steps are done), with ``state.pt`` (weights, optimizer, position) of rank 0 and
each rank's memory rows by sample id, so that another number of ranks can go on from it. Everything random is a function
of (seed, round, epoch, step), so there is no generator state to keep.
"""

import contextlib
import io
import re
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from andscale.distributed import World, barrier, gather_records
from andscale.errors import RunError
from andscale.store import artifacts
from andscale.store.features import gather_by_id, shard_name, write_features
from andscale.store.files import errors_name
from andscale.store.torch_file import check_torch_file
from andscale.training.memory_bank import MemoryBank, rows_of_rank

KIND = "checkpoint"
STATE_NAME = "state.pt"
_KEPT = 2
_NAME = re.compile(r"epoch-(\d{4,})(?:-step-(\d{6,}))?")


@dataclass(frozen=True)
class Position:
    """How far training has come, and what its epoch's figures are made of so far.

    Attributes:
        epoch: the one to go on with.
        step: of that epoch; the steps before it are done.
        loss_sum: over the samples of those steps.
        num_samples: in that sum.
        seconds: that those steps took.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    num_samples: int = 0
    seconds: float = 0.0

    @property
    def folder_name(self) -> str:
        """Of its checkpoint."""
        return f"epoch-{self.epoch:04d}" + (f"-step-{self.step:06d}" if self.step else "")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds; of the memory, (n, D) float32, this rank's rows."""

    position: Position
    state: dict[str, Any]
    memory: np.ndarray


def publish_from_ranks(  # noqa: PLR0913 - as artifacts.commit, plus who and how
    folder: Path,
    write: Callable[[Path], Iterable[tuple[str, int | None]]],
    *,
    world: World,
    kind: str,
    provenance: artifacts.Provenance,
    started: float,
    figures: dict[str, Any] | None = None,
) -> None:
    """Write one artefact from all ranks: each writes and seals its own files, rank 0 commits when all have.

    Args:
        folder: the artefact's folder.
        write: called on every rank with the folder to write into; gives (file name, rows) of each file written.
        world: this rank.
        kind: what it is.
        provenance: config hash and parents.
        started: ``time.monotonic()`` at the start of the work.
        figures: what was measured; rank 0's counts.
    """
    (staging, *_) = gather_records(str(artifacts.begin(folder)) if world.is_main else None)
    with errors_name(folder):
        mine = [asdict(artifacts.seal(Path(staging) / name, rows)) for name, rows in write(Path(staging))]
    files = [artifacts.FileRecord(**record) for records in gather_records(mine) for record in records]
    if world.is_main:
        artifacts.commit(
            Path(staging),
            folder,
            kind=kind,
            files=files,
            provenance=provenance,
            started=started,
            figures=figures,
        )
    barrier()


def write_memory(
    folder: Path, memory: MemoryBank, world: World, dtype: Literal["float32", "float16"] = "float32"
) -> list[tuple[str, int | None]]:
    """Write this rank's rows of the memory, stored as ``dtype``; for ``publish_from_ranks``."""
    name = shard_name(world.rank, world.world_size)
    ids = np.arange(memory.rows.start, memory.rows.stop, dtype=np.int64)
    write_features(folder / name, ids, memory.values.cpu().numpy(), dtype)
    return [(name, len(ids))]


def save_checkpoint(
    folder: Path,
    position: Position,
    state: dict[str, Any],
    memory: MemoryBank,
    world: World,
    provenance: artifacts.Provenance,
) -> None:
    """Publish the checkpoint of a position and remove all but the last two; ``state`` of rank 0 is written."""

    def write(staging: Path) -> Iterable[tuple[str, int | None]]:
        yield from write_memory(staging, memory, world)
        if world.is_main:
            buffer = io.BytesIO()  # given a file, torch hides why it cannot write to it
            torch.save({**state, "position": asdict(position)}, buffer)
            (staging / STATE_NAME).write_bytes(buffer.getbuffer())
            yield STATE_NAME, None

    target = folder / position.folder_name
    publish_from_ranks(target, write, world=world, kind=KIND, provenance=provenance, started=time.monotonic())
    if world.is_main:
        checkpoints = _checkpoints(folder)
        for old in checkpoints[: checkpoints.index(_whole_ones(checkpoints)[-_KEPT:][0])]:
            # without its manifest it is no checkpoint any more, however far the removal comes
            (old / artifacts.MANIFEST_NAME).unlink(missing_ok=True)
            shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: Path, world: World, provenance: artifacts.Provenance) -> Checkpoint | None:
    """The newest valid checkpoint, chosen by rank 0 for all; None when there is none.

    Damaged ones are named on standard error and passed over. One that belongs to other inputs (another config or
    other parents) is refused.
    """
    (chosen, *_) = gather_records(_newest_valid(folder, provenance) if world.is_main else None)
    if chosen is None:
        return None
    path = Path(chosen)
    manifest = artifacts.load_manifest(path, KIND)
    shards = [path / f.name for f in manifest.files if f.rows is not None]
    state, position = _load_state(path / STATE_NAME)
    rows = rows_of_rank(manifest.num_rows, world.rank, world.world_size)
    return Checkpoint(position, state, gather_by_id(shards, manifest.num_rows, rows))


def _load_state(path: Path) -> tuple[dict[str, Any], Position]:
    try:
        check_torch_file(path)
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        # older ones were written at the ends of epochs alone
        position = Position(**state["position"]) if "position" in state else Position(int(state["next_epoch"]))
    except Exception:  # torch's reader raises nearly anything on damaged bytes
        raise RunError(
            f"{path} is not a checkpoint of ours: remove {path.parent.parent} to start the round anew"
        ) from None
    return state, position


def _newest_valid(folder: Path, provenance: artifacts.Provenance) -> str | None:
    for path in reversed(_checkpoints(folder)):
        try:
            manifest = artifacts.verify(path, KIND)
        except RunError as error:
            print(f"warning: checkpoint passed over: {error}", file=sys.stderr, flush=True)
            # out of the way, so that the epoch can be published again; kept for whoever wants to know why
            path.rename(path.with_name(f".damaged-{path.name}-{secrets.token_hex(4)}"))
            continue
        if manifest.provenance != provenance:
            raise RunError(f"{path} was made from other inputs than this round has: remove {folder} to start anew")
        return str(path)
    return None


def _checkpoints(folder: Path) -> list[Path]:
    """All of a round, by position."""
    found = [(match, path) for path in folder.glob("epoch-*") if (match := _NAME.fullmatch(path.name))]
    return [path for match, path in sorted(found, key=lambda item: [int(number or 0) for number in item[0].groups()])]


def _whole_ones(checkpoints: list[Path]) -> list[Path]:
    """Those whose files are there in full length; hashes are for the reader to check."""
    whole = []
    for path in checkpoints:
        with contextlib.suppress(RunError):
            for file in artifacts.load_manifest(path, KIND).files:
                artifacts.check_size(path / file.name, file.bytes)
            whole.append(path)
    return whole
