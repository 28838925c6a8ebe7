"""The samples of a prepared data set in the order of its shards, as any reader of WebDataset gives them."""

import re
from collections.abc import Iterator
from typing import Any

from andscale.data.raw import MAX_IMAGE_BYTES
from andscale.data.shards import PreparedDataset, split_record
from andscale.data.tar_archives import list_members
from andscale.errors import RunError

_MEMBER = re.compile(r"\d{1,18}\.(cls|jpg|png|webp|bmp)")


def stream_samples(dataset: PreparedDataset, split: str) -> Iterator[tuple[str, bytes, int]]:
    """(key, image bytes, label) of each sample in the order of the shards, read with ``webdataset``.

    The shards are opened here and handed over as streams: webdataset, which would run ``pipe:`` URLs as commands,
    sees no address at all.

    Raises:
        RunError: a shard is missing or damaged.
    """
    from tarfile import TarError

    from webdataset.tariterators import group_by_keys, tar_file_expander

    record = split_record(dataset, split)

    def streams() -> Iterator[dict[str, Any]]:
        for shard in record.shards:
            path = dataset.root / shard.name
            for member in list_members(path, str(path)):  # webdataset would unpack, merge and follow anything
                if not _MEMBER.fullmatch(member.name) or member.length > MAX_IMAGE_BYTES:
                    raise RunError(f"{path} is refused for its member {member.name!r}: no sample of ours")
            with path.open("rb") as stream:
                yield {"url": shard.name, "stream": stream}

    try:
        for sample in group_by_keys(tar_file_expander(streams())):
            label = sample.pop("cls", None)
            images = [value for suffix, value in sample.items() if not suffix.startswith("__")]
            if len(images) != 1:
                raise ValueError(f"{sample['__key__']} has {len(images)} images")
            yield sample["__key__"], images[0], -1 if label is None else int(label)
    except (TarError, OSError, ValueError, RunError) as error:
        raise RunError(f"the shards of {dataset.root} cannot be read ({error}): verify the data set") from None
