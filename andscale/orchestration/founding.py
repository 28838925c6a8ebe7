"""What a run is founded on: a data set and a network that go with its config, and run.json, under a launcher's hold."""

import contextlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from andscale.config import TIMM_PREFIX, RunConfig
from andscale.errors import UsageError
from andscale.orchestration.holding import Hold, hold_run
from andscale.store.files import as_place, check_writable
from andscale.store.run_layout import RunLayout
from andscale.store.run_record import create_run, load_run, refuse_other_config


@contextlib.contextmanager
def held_run(root: Path, config: RunConfig) -> Iterator[Hold]:
    """Hold a run for this launcher; a new one gets its folder and run.json.

    Raises:
        UsageError: it cannot be written, or has another config. RunError: another launcher holds it.
    """
    check_writable(root)
    root.mkdir(parents=True, exist_ok=True)
    with hold_run(RunLayout(root)) as hold:
        if not RunLayout(root).record.exists():
            create_run(root, config, *data_set_of(config))
        # another launcher may have been at work until now
        refuse_other_config(root, load_run(root).config, config)
        yield hold


def data_set_of(config: RunConfig) -> tuple[Path | str, str]:
    """The prepared data set's folder or URL, and its fingerprint.

    Raises:
        UsageError: it is not one, or it is too small for the config.
    """
    from andscale.data.shards import open_dataset

    root = as_place(config.data.dataset)
    dataset = open_dataset(root)
    num_samples = min(dataset.splits["train"].num_samples, config.data.max_train_samples or 2**62)
    if config.method.num_neighbours >= num_samples:
        raise UsageError(
            f"method.num_neighbours = {config.method.num_neighbours}, but {root} has {num_samples} training images: "
            f"k must be at most {num_samples - 1}"
        )
    if config.method.name == "deepcluster":
        from andscale.training.deepcluster import check_num_clusters

        check_num_clusters(config, num_samples)
    if config.method.name == "supervised":
        from andscale.data.shards import load_catalogue
        from andscale.training.supervised import training_labels

        training_labels(load_catalogue(dataset, "train", config.data.max_train_samples))
    return root, dataset.fingerprint


def check_network(config: RunConfig) -> None:
    """Raise UsageError when timm lacks the network, or it does not take the images; the config checks our own."""
    if config.model.backbone.startswith(TIMM_PREFIX):
        from andscale.training.timm_backbones import check_timm

        check_timm(config.model.backbone.removeprefix(TIMM_PREFIX), config.data.image_size)


def check_faiss() -> None:
    """Raise UsageError where there is no FAISS, before hours of training: the steps behind it need one."""
    if find_spec("faiss") is None:
        raise UsageError("a run needs FAISS, which is not here: install andscale[cpu], andscale[gpu] or andscale[cuvs]")
