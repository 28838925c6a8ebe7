"""The demo: raw images to a table of three rounds, with what every user has."""

import sys
from pathlib import Path

from andscale.config_file import packaged_configs
from andscale.data.prepare import PrepareOptions, prepare
from andscale.errors import SourceUnavailableError
from andscale.orchestration.launch import LaunchRequest, launch

_ROUNDS = range(3)


def run_demo(folder: Path | None) -> None:
    """Prepare Fashion-MNIST (scikit-learn's digits where it cannot be had) and launch rounds 0 to 2 locally.

    Args:
        folder: where Fashion-MNIST's IDX files lie; None tries Debian's package, then torchvision's mirrors.
    """
    name, prepared = "fashion_mnist_demo", Path("data/fashion-mnist")
    try:
        if folder is not None or not (prepared / "dataset.json").exists():
            prepare("fashion-mnist", folder, prepared, PrepareOptions())
    except SourceUnavailableError as error:
        name = "digits_demo"
        print(
            f"\n{'!' * 100}\n! FASHION-MNIST CANNOT BE HAD HERE: {error}\n"
            "! GOING ON WITH SCIKIT-LEARN'S 1,797 DIGITS INSTEAD: the figures at the end are of another data set.\n"
            f"{'!' * 100}\n",
            file=sys.stderr,
            flush=True,
        )
        prepare("digits", None, Path("data/digits"), PrepareOptions())
    launch(LaunchRequest(rounds=_ROUNDS, config=packaged_configs()[name], cluster="local"))
