"""Round 0 once for all runs that start alike.

Round 0 trains instances (eq 2) and knows no neighbourhoods, so runs that differ in k, R or what is evaluated, and the
baseline of instances, have the same one. A run that takes it over from another publishes copies as its own artefacts,
with its own config's hash and the same parent, the data set; their figures say who trained them, copies ago or not.
"""

import json
import shutil
import time
from pathlib import Path
from typing import Any

from andscale.config import RunConfig
from andscale.config_file import flatten
from andscale.errors import RunError, UsageError
from andscale.orchestration.founding import held_run
from andscale.orchestration.launch import LaunchRequest, open_run, run_root
from andscale.orchestration.records import read_job_record
from andscale.orchestration.steps import Step, outputs
from andscale.store import artifacts
from andscale.store.files import hash_bytes, write_file
from andscale.store.run_layout import RunLayout
from andscale.store.run_record import load_run

_TRAIN = Step("train", 0)
_AFTER_ROUND_0 = ("index", "evaluation")
_OF_INSTANCES = ("memory_start", "temperature", "memory_momentum", "objective", "num_negatives", "score_dtype")
"""What round 0 takes of ``[method]`` where it trains by eq 2."""


def initialisation_digest(config: RunConfig) -> str:
    """BLAKE3 of all that decides what round 0 leaves: configs with the same one can share it."""
    record = _initialisation(config)
    return hash_bytes(json.dumps(record, sort_keys=True, separators=(",", ":")).encode())


def adopt_initialisation(donor: Path, request: LaunchRequest) -> bool:
    """Give a run the round 0 that another one has trained; the run is made if there is none.

    May be killed at any moment and called again. The launch that follows, of the same request, finds the training of
    round 0 done; on the CPU and with the same number of ranks the run ends bit for bit as if it had trained it itself.

    Args:
        donor: the run that has round 0.
        request: as it is given to ``launch``: it names the run that receives it, its config and resources.

    Returns:
        False where the receiving run has a round 0 already, or has begun one of its own: then it is left alone.

    Raises:
        UsageError: the two do not start alike, or the donor has no round 0 yet. RunError: the donor's is damaged, or
            another launcher holds the run.
    """
    root = run_root(request)
    config = open_run(root, request)
    _refuse_unlike(donor, root, config)
    source, target = RunLayout(donor), RunLayout(root)
    kinds = outputs(source, _TRAIN)
    for name, kind in kinds.items():
        if not artifacts.is_complete(donor / name):
            raise UsageError(f"{donor} has no {kind} of round 0 to share: launch its round 0 first")
    with held_run(root, config):
        if load_run(donor).dataset_fingerprint != load_run(root).dataset_fingerprint:
            raise UsageError(f"{donor} and {root} have different data sets: round 0 cannot be shared")
        absent = [name for name in kinds if not artifacts.is_complete(root / name)]
        if not absent or _has_begun(target, kinds):
            return False
        metrics = source.round(0).metrics
        if metrics.exists():
            write_file(target.round(0).metrics, metrics.read_bytes())
        provenance = artifacts.Provenance(config.digest(), {"dataset": load_run(root).dataset_fingerprint})
        for name in absent:
            _adopt(donor, root, name, kinds[name], provenance)
    return True


def has_begun_round_0(root: Path) -> bool:
    """Whether a run trains round 0 itself, or did; False where it took it over, or nothing of it has begun."""
    return _has_begun(RunLayout(root), outputs(RunLayout(root), _TRAIN))


def _initialisation(config: RunConfig) -> dict[str, Any]:
    record = {name: part for name, part in config.scientific_record().items() if name not in _AFTER_ROUND_0}
    method = config.method
    if method.starts_from_features:
        # those of the first weights are computed in batches of this size
        record["evaluation"] = {"batch_size": config.evaluation.batch_size}
    if not method.trains(0):
        record["method"] = {"name": "random"}
        del record["optim"]
    elif method.name in ("and", "instance"):
        record["method"] = {"name": "instance"} | {name: getattr(method, name) for name in _OF_INSTANCES}
    return record


def _refuse_unlike(donor: Path, root: Path, config: RunConfig) -> None:
    theirs, ours = (flatten(_initialisation(c)) for c in (load_run(donor).config, config))
    unlike = sorted(key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key))
    if unlike:
        shown = "; ".join(f"{key}: {theirs.get(key)!r} and {ours.get(key)!r}" for key in unlike)
        raise UsageError(f"{donor} and {root} do not start alike ({shown}): round 0 cannot be shared")


def _has_begun(target: RunLayout, kinds: dict[str, str]) -> bool:
    """Whether the run trains round 0 itself, or did: then what is there goes on from its own checkpoints."""
    if target.round(0).checkpoints.exists() or read_job_record(target, _TRAIN) is not None:
        return True
    made = [artifacts.load_manifest(target.root / n, k) for n, k in kinds.items() if (target.root / n).exists()]
    return any("adopted_from" not in manifest.figures for manifest in made)


def _adopt(donor: Path, root: Path, name: str, kind: str, provenance: artifacts.Provenance) -> None:
    """Publish one artefact's copy; the hash of what was written must be that of the donor's record."""
    started, manifest = time.monotonic(), artifacts.load_manifest(donor / name, kind)
    artifacts.refuse_other_config(donor / name, manifest, load_run(donor).config.digest())
    with artifacts.publish(root / name, kind=kind, provenance=provenance, started=started) as draft:
        for record in manifest.files:
            shutil.copyfile(donor / name / record.name, draft.path(record.name))
            if draft.add(record.name, record.rows) != record:
                raise RunError(f"{donor / name / record.name} does not have the hash of its record: it is damaged")
        trained = {
            "run": donor.name,
            "digest": manifest.digest,
            "seconds": manifest.seconds,
            "commit": manifest.commit,
        }
        # a donor that took it over itself names the run that trained it
        draft.figures.update({"adopted_from": trained} | dict(manifest.figures))
