"""What a round of training starts from: read, verified, and named as parents."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from andscale.config import MethodConfig
from andscale.distributed import World, barrier
from andscale.errors import RunError, UsageError
from andscale.spelling import spelt
from andscale.store import artifacts
from andscale.store.features import KIND as MEMORY_KIND
from andscale.store.features import read_features
from andscale.store.neighbourhoods import NeighbourhoodTable, read_table
from andscale.store.run_layout import RunLayout
from andscale.store.run_record import RunRecord
from andscale.training.memory_bank import rows_of_rank

MODEL_KIND = "model"


@dataclass(frozen=True)
class RoundInputs:
    """What a round starts from, verified.

    Attributes:
        members: (N, k + 1) int64, ids of S_i: the sample, then its neighbours if it is an anchor; -1 elsewhere.
            (N, 1), the samples alone, where there are no neighbourhoods.
        memory: (n, D) float32, this rank's rows of what the round before left; None in round 0.
        model: the folder of the round before's model; None in round 0.
        provenance: config hash and parents of everything that this round writes.
    """

    members: Tensor
    memory: np.ndarray | None
    model: Path | None
    provenance: artifacts.Provenance


def check_inputs_exist(layout: RunLayout, round_number: int, method: MethodConfig) -> None:
    """Raise UsageError unless the round before and, with neighbourhoods, this round's are there."""
    if method.name == "random" and round_number:
        raise UsageError(f"method.name = random has no round {round_number}: there is nothing to train")
    if round_number == 0:
        return
    before, current = layout.round(round_number - 1), layout.round(round_number)
    for folder, what in ((before.memory, "memory"), (before.model, "model")):
        if not artifacts.is_complete(folder):
            raise UsageError(f"round {before.number} has no {what}: run --round {before.number} first")
    if method.finds_neighbours and not artifacts.is_complete(current.neighbourhoods):
        raise UsageError(
            f"round {round_number} has no neighbourhoods: run {spelt('rebuild')} --round {round_number} first"
        )


def load_inputs(
    record: RunRecord, layout: RunLayout, round_number: int, num_samples: int, world: World | None = None
) -> RoundInputs:
    """Read and verify everything a round starts from; of the memory, this rank's rows.

    Args:
        record: of the run.
        layout: of the run.
        round_number: r.
        num_samples: N of the data.
        world: this rank, all ranks call; None: there is one.

    Raises:
        RunError: damaged, of another data set, or neighbourhoods that were not found in the memory of round r - 1.
    """
    itself = torch.arange(num_samples)[:, None]
    parents = {"dataset": record.dataset_fingerprint}
    config_hash = record.config.digest()
    if round_number == 0:
        return RoundInputs(itself, None, None, artifacts.Provenance(config_hash, parents))
    before = layout.round(round_number - 1)
    world = world or World()
    num_rows = artifacts.load_manifest(before.memory, MEMORY_KIND).num_rows
    if num_rows != num_samples:
        raise RunError(f"{before.memory} has {num_rows} samples, the data {num_samples}")
    # ranks share the checking of hashes; the first collective comes after all have read
    rows, share = rows_of_rank(num_samples, world.rank, world.world_size), (world.rank, world.world_size)
    memory, memory_manifest = read_features(before.memory, rows=rows, share=share)
    barrier()
    model_manifest = artifacts.verify(before.model, MODEL_KIND)
    artifacts.refuse_other_config(before.memory, memory_manifest, config_hash)
    artifacts.refuse_other_config(before.model, model_manifest, config_hash)
    parents |= {
        f"rounds/{before.number:02d}/memory": memory_manifest.digest,
        f"rounds/{before.number:02d}/model": model_manifest.digest,
    }
    members = itself
    if record.config.method.finds_neighbours:
        table, digest = _load_table(layout, round_number, memory_manifest.digest, config_hash)
        if len(table) != num_samples:
            raise RunError(f"the neighbourhoods of round {round_number} are {len(table)}, the data {num_samples}")
        neighbours = torch.from_numpy(table.neighbour_ids)
        members = torch.cat([itself, neighbours.where(torch.from_numpy(table.is_anchor)[:, None], -1)], dim=1)
        parents[f"rounds/{round_number:02d}/neighbourhoods"] = digest
    return RoundInputs(members, memory, before.model, artifacts.Provenance(config_hash, parents))


def _load_table(
    layout: RunLayout, round_number: int, memory_digest: str, config_hash: str
) -> tuple[NeighbourhoodTable, str]:
    """The neighbourhoods of a round, found in the memory of this digest, and their own digest."""
    before, current = layout.round(round_number - 1), layout.round(round_number)
    table, manifest = read_table(current.neighbourhoods)
    artifacts.refuse_other_config(current.neighbourhoods, manifest, config_hash)
    if manifest.provenance.parents.get(f"rounds/{before.number:02d}/memory") != memory_digest:
        raise RunError(
            f"{current.neighbourhoods} was not made from {before.memory} as it is now: "
            f"remove {current.root} and run --round {round_number} again"
        )
    return table, manifest.digest
