"""run.json: what a run is, frozen at its first launch."""

import json
import platform
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from andscale.config import RunConfig
from andscale.config_file import build_config, config_differences, migrate
from andscale.errors import UsageError
from andscale.store.files import as_place, check_writable, parse_json, read_record_bytes, write_file
from andscale.store.provenance import source_commit
from andscale.store.run_layout import RunLayout

FORMAT_VERSION = 1
_LEFT_OVER = (".run.json.tmp-", ".andscale-probe-", "launcher")
_PACKAGES = (
    "andscale",
    "torch",
    "torchvision",
    "faiss-cpu",
    "faiss-gpu",
    "faiss-gpu-cuvs",
    "numpy",
    "pyarrow",
    "submitit",
    "webdataset",
)


@dataclass(frozen=True)
class RunRecord:
    """The content of run.json.

    Attributes:
        config: the resolved config.
        dataset_root: where the prepared data set lies: an absolute folder, or a URL.
        dataset_fingerprint: of its dataset.json, ``PreparedDataset.fingerprint``.
        versions: package -> version at the first launch.
    """

    config: RunConfig
    dataset_root: Path | str
    dataset_fingerprint: str
    versions: dict[str, str]


def load_run(root: Path) -> RunRecord:
    """Read run.json.

    Raises:
        UsageError: no run there, or a folder that is not a run of ours.
    """
    path = RunLayout(root).record
    try:
        record = parse_json(read_record_bytes(path))
        if record["format"] != "andscale.run":
            raise KeyError("format")
        if record["format_version"] > FORMAT_VERSION:
            raise UsageError(f"{path} has format version {record['format_version']}: a newer andscale wrote it")
        return RunRecord(
            config=build_config(migrate(record["config"]), str(path)),
            dataset_root=as_place(record["dataset"]["root"]),
            dataset_fingerprint=record["dataset"]["fingerprint"],
            versions=record["versions"],
        )
    except FileNotFoundError:
        if root.exists():
            raise UsageError(f"{root} is not a run (no run.json in it): choose another --run") from None
        raise UsageError(f"there is no run {root}: start it with --config") from None
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{path} is not a run record of ours, or it is damaged") from None


def load_launched_run(root: Path, launched: RunConfig | None) -> RunRecord:
    """The run as one of its launches wants it: resources and reading of that launch, all else as it was started.

    Args:
        root: the run's folder.
        launched: the launch's config; None: what the run was started with.

    Raises:
        UsageError: no run there, or the launch's config is not the run's.
    """
    record = load_run(root)
    if launched is None:
        return record
    refuse_other_config(root, record.config, launched)
    return replace(record, config=launched)


def create_run(root: Path, config: RunConfig, dataset_root: Path | str, dataset_fingerprint: str) -> RunRecord:
    """Write run.json into a new folder.

    Raises:
        UsageError: the folder holds something else, or cannot be written.
    """
    refuse_foreign(root)
    check_writable(root)
    record: dict[str, Any] = {
        "format": "andscale.run",
        "format_version": FORMAT_VERSION,
        "config": config.model_dump(mode="json"),
        "config_hash": config.digest(),
        "dataset": {
            "root": str(dataset_root.resolve() if isinstance(dataset_root, Path) else dataset_root),
            "fingerprint": dataset_fingerprint,
        },
        "versions": _versions(),
        "commit": source_commit(),
    }
    write_file(RunLayout(root).record, (json.dumps(record, indent=2) + "\n").encode())
    return load_run(root)


def refuse_foreign(root: Path) -> None:
    """Raise UsageError when a folder without run.json holds anything but what a killed first launch leaves."""
    if not root.exists():
        return
    if not root.is_dir() or any(not path.name.startswith(_LEFT_OVER) for path in root.iterdir()):
        raise UsageError(f"{root} exists and is not a run (no run.json in it): choose another --run")


def refuse_other_config(root: Path, recorded: RunConfig, given: RunConfig) -> None:
    """Raise UsageError with the differences when a launch brings another config than the run's."""
    differences = config_differences(recorded, given)
    if differences:
        raise UsageError(
            f"{root} was started with another config ({'; '.join(differences)}): "
            "launch without --config and --set to go on with it, or choose another --run"
        )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
