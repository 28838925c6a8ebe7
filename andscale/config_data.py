"""What is read and how: ``[data]`` and ``[augment]``."""

from typing import Literal

from pydantic import Field

from andscale.config_resources import Section

READ_ANYHOW = ("num_workers", "cache_dir", "cache_bytes")
"""Of ``[data]``: how fast images come and what memory that takes, not which; they may differ from launch to launch."""


class DataConfig(Section):
    """Which prepared data set is read, and how."""

    dataset: str
    """Folder made by tools/prepare_shards.py, relative paths are taken from where the run is first launched; or the
    URL of such a folder on an HTTP server or object store (http, https, s3, gs, az, abfs)."""
    image_size: int = Field(default=32, ge=4, le=1024)
    """Height and width of the network's input, pixels."""
    max_train_samples: int | None = Field(default=None, ge=2)
    """Use the first so many training images only; None uses all."""
    max_val_samples: int | None = Field(default=None, ge=1)
    """Use the first so many validation images only; None uses all."""
    in_memory_bytes: int = Field(default=2 * 1024**3, ge=0)
    """Images of one common size are decoded once and held as uint8 in every rank up to this size; larger splits are
    read from the shards. 0 always reads from the shards."""
    num_workers: int | None = Field(default=None, ge=0)
    """Reading and decoding threads a rank, where images are read from the shards; None: as many as the rank has cores.
    """
    shuffle: Literal["full", "chunked"] = "full"
    """Order of an epoch. ``full``: any permutation. ``chunked``: chunks of consecutive samples in random order, mixed
    over a sliding window of 64 of them, so that disks are read in long pieces; of a URL, chunks are whole shards and
    the window is 8 of them."""
    chunk_samples: int = Field(default=128, ge=1)
    """Samples of a chunk, which is read at once; 64 chunks and a few more are held in memory, by all ranks together."""
    cache_dir: str | None = None
    """Where shards of a URL are kept on each node; None: a folder of the user's in the temporary folder."""
    cache_bytes: int = Field(default=64 * 1024**3, ge=0)
    """Shards of a URL are kept up to so many bytes a node: all of them with ``full``, 13 with ``chunked``."""


class AugmentConfig(Section):
    """Training augmentation; the defaults are those of the published code, which does not flip."""

    min_crop_scale: float = Field(default=0.2, gt=0, le=1)
    """Least area of the random-resized crop, as a fraction of the image's."""
    flip_probability: float = Field(default=0.5, ge=0, le=1)
    brightness: float = Field(default=0.4, ge=0, le=1)
    contrast: float = Field(default=0.4, ge=0, le=1)
    saturation: float = Field(default=0.4, ge=0, le=1)
    hue: float = Field(default=0.4, ge=0, le=0.5)
    """Greatest rotation of the hue, in turns."""
    grayscale_probability: float = Field(default=0.2, ge=0, le=1)
