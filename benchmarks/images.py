"""Images to the network's input, on one core: ours beside torchvision's ImageFolder and transforms.

    python -m benchmarks.images [--images 2000]

The photographs are crops of scikit-learn's two, 375 to 640 pixels a side and 110 KB on average. The contenders take
turns in one process with one thread; ratios are medians over the turns. Chunked shuffling is measured on ImageNet's
number of samples.
"""

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from andscale.config_data import AugmentConfig, DataConfig
from benchmarks.table import NOT_KNOWN, markdown, number

SIZE, BATCH = 224, 50
TARGET = 1.5
_QUALITY = 98
_EXTENTS = ((500, 375), (375, 500), (500, 333), (640, 480))
_BATCHES_AHEAD = 2
_IMAGENET = 1_281_167


def make_photographs(folder: Path, num_images: int) -> float:
    """Write ``folder``/train/photographs/*.jpg; returns their mean bytes."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    place = folder / "train" / "photographs"
    place.mkdir(parents=True)

    def make(index: int) -> int:
        rng = np.random.default_rng(index)
        whole = photographs[index % 2]
        width, height = _EXTENTS[rng.integers(len(_EXTENTS))]
        cut_h = int(min(whole.height, whole.width * height / width) * rng.uniform(0.6, 1))
        cut_w = cut_h * width // height
        left, top = rng.integers(whole.width - cut_w + 1), rng.integers(whole.height - cut_h + 1)
        cut = whole.crop((left, top, left + cut_w, top + cut_h)).resize((width, height), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        cut.save(buffer, "JPEG", quality=_QUALITY)
        (place / f"{index:05d}.jpg").write_bytes(buffer.getvalue())
        return len(buffer.getvalue())

    with ThreadPoolExecutor() as pool:
        return statistics.mean(pool.map(make, range(num_images)))


def take_turns(contenders: dict[str, Callable[[], Any]], num_turns: int) -> dict[str, list[float]]:
    """Seconds of each contender in each turn, after one call that is not counted."""
    for function in contenders.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(num_turns):
        for name, function in contenders.items():
            started = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def median_ratio(above: list[float], below: list[float]) -> float:
    """Median over the turns of the ratio within each, so that drift cancels."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def torchvision_batches(folder: Path) -> Iterator[Any]:
    """The peer: batches of 50 from ImageFolder, decoded by Pillow, with the same augmentation."""
    from torch.utils.data import DataLoader
    from torchvision import transforms as t
    from torchvision.datasets import ImageFolder

    from andscale.data.augment import PIXEL_MEAN, PIXEL_STD

    transform = t.Compose(
        [
            t.RandomResizedCrop(SIZE, scale=(0.2, 1.0)),
            t.RandomHorizontalFlip(),
            t.ColorJitter(0.4, 0.4, 0.4, 0.4),
            t.RandomGrayscale(0.2),
            t.ToTensor(),
            t.Normalize(PIXEL_MEAN, PIXEL_STD),
        ]
    )
    return iter(DataLoader(ImageFolder(str(folder / "train"), transform), BATCH, shuffle=True))


def our_batches(folder: Path, prepared: Path) -> Iterator[Any]:
    """Ours: batches of 50 of the same files, from shards."""
    import torch

    from andscale.data.prepare import PrepareOptions, prepare
    from andscale.data.reader import SplitReader
    from andscale.distributed import World

    dataset = prepare("image-folder", folder, prepared, PrepareOptions(num_workers=1))
    config = DataConfig(dataset=str(prepared), image_size=SIZE, num_workers=0)
    reader = SplitReader(dataset, "train", config, torch.device("cpu"))
    return reader.epoch(World(), AugmentConfig(), BATCH, (0, 0, 0))


def whole_pipelines(folder: Path, prepared: Path, num_images: int) -> str:
    """Files to normalised batches."""
    ours, peer = our_batches(folder, prepared), torchvision_batches(folder)
    # ours works some batches ahead, so its first takes longer and its last are there already
    turns = num_images // BATCH - _BATCHES_AHEAD - 2
    seconds = take_turns({"ours": lambda: next(ours), "peer": lambda: next(peer)}, turns)
    rate = {name: BATCH / statistics.median(values) for name, values in seconds.items()}
    ratio = median_ratio(seconds["peer"], seconds["ours"])
    verdict = "reached" if ratio >= TARGET else "missed"
    return markdown(
        ["decode, crop, resize, flip, jitter, grayscale, normalise", "images/s and core", "of torchvision's", "target"],
        [
            ["torchvision ImageFolder, Pillow, transforms, DataLoader", number(rate["peer"], 0), "1.00", NOT_KNOWN],
            ["andscale, shards", number(rate["ours"], 0), number(ratio, 2), f">= {TARGET}: {verdict}"],
        ],
    )


def decoders() -> dict[str, Callable[[bytes], Any]]:
    """Ways to decode a JPEG whole and at half its size; those that are installed."""
    import torch
    from PIL import Image

    from andscale.data.images import decode_rgb

    def pillow(data: bytes, reduction: int) -> Any:
        image = Image.open(io.BytesIO(data))
        image.draft("RGB", (image.width // reduction, image.height // reduction))
        return np.asarray(image.convert("RGB"))

    found: dict[str, Callable[[bytes], Any]] = {
        "Pillow": lambda data: pillow(data, 1),
        "Pillow, draft to 1/2": lambda data: pillow(data, 2),
        "simplejpeg (andscale's)": decode_rgb,
        "simplejpeg (andscale's) at 1/2": lambda data: decode_rgb(data, 2),
    }
    try:
        import cv2

        cv2.setNumThreads(1)
        found["OpenCV"] = lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        found["OpenCV at 1/2"] = lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_REDUCED_COLOR_2)
    except ImportError:
        pass
    try:
        from torchcodec.decoders import decode_jpeg

        found["torchcodec"] = lambda data: decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    except ImportError:
        pass
    try:
        from turbojpeg import TurboJPEG

        found["PyTurboJPEG"] = TurboJPEG().decode
    except (ImportError, RuntimeError):  # it brings no library of its own
        pass
    return found


def decoding(folder: Path, num_images: int) -> str:
    """Decoders alone."""
    files = sorted((folder / "train" / "photographs").iterdir())[: min(num_images, 100)]
    encoded = [path.read_bytes() for path in files]
    functions = {
        name: lambda decode=decode: [decode(data) for data in encoded]  # type: ignore[misc]
        for name, decode in decoders().items()
    }
    seconds = take_turns(functions, 5)
    rows = []
    for name, values in seconds.items():
        ratio = median_ratio(seconds["Pillow"], values)
        rows.append([name, number(statistics.median(values) / len(encoded) * 1e3, 2), number(ratio, 2)])
    return markdown(["decoding alone", "ms/image", "x Pillow"], rows)


def held_in_memory() -> str:
    """Images of 28 x 28 that are held decoded, as the demo's are: the loops beside tensor operations."""
    import torch

    from andscale.data.augment import crop_and_resize, draw_augmentation, jitter_colours, normalise, training_boxes
    from andscale.data.decoding import colours_of, transform_held

    rng, batch, side = np.random.default_rng(0), 128, 28
    held = rng.integers(0, 256, (10_000, side, side, 3), dtype=np.uint8)
    planes = torch.from_numpy(held).permute(0, 3, 1, 2).contiguous()
    configs = {
        "the demo's augmentation": AugmentConfig(saturation=0, hue=0, grayscale_probability=0),
        "the published augmentation": AugmentConfig(),
    }
    rows = []
    for title, config in configs.items():

        def loops(config: AugmentConfig = config) -> Any:
            draw, ids = draw_augmentation(config, batch, (0, 0, 0, 0)), rng.integers(0, len(held), batch)
            boxes = training_boxes(draw, np.full(batch, side), np.full(batch, side))
            return transform_held(held, ids, (boxes, draw.flips), colours_of(draw, batch), side)

        def tensors(config: AugmentConfig = config) -> Any:
            draw, ids = draw_augmentation(config, batch, (0, 0, 0, 0)), rng.integers(0, len(held), batch)
            boxes = training_boxes(draw, np.full(batch, side), np.full(batch, side))
            crops = crop_and_resize(planes[torch.from_numpy(ids)], boxes, draw.flips, side)
            return normalise(jitter_colours(crops, draw)).contiguous(memory_format=torch.channels_last)

        seconds = take_turns({"loops": loops, "tensors": tensors}, 30)
        us = [statistics.median(seconds[name]) / batch * 1e6 for name in ("tensors", "loops")]
        ratio = median_ratio(seconds["tensors"], seconds["loops"])
        rows.append([title, number(us[0], 1), number(us[1], 1), number(ratio, 1)])
    return markdown(["28 x 28 pixels, held", "tensor operations (us/image)", "andscale (us/image)", "ratio"], rows)


def shuffling(prepared: Path) -> str:
    """Reads of a shuffled epoch over the photographs, and how well ImageNet's number of samples is mixed."""
    import torch

    from andscale.data import samples
    from andscale.data.order import WINDOW_CHUNKS, chunk_cuts, chunked_order, epoch_order, shuffle_quality
    from andscale.data.reader import SplitReader
    from andscale.data.shards import open_dataset

    cuts, rows = chunk_cuts(_IMAGENET, 128), []
    orders = {
        "full": epoch_order(_IMAGENET, 0, 0, 0),
        "chunked": chunked_order(cuts, WINDOW_CHUNKS, (0, 0, 0)),
    }
    read = samples.read_image_bytes
    for shuffle, order in orders.items():
        config = DataConfig(dataset=str(prepared), image_size=SIZE, shuffle=shuffle, num_workers=0)  # type: ignore[arg-type]
        reader = SplitReader(open_dataset(prepared), "train", config, torch.device("cpu"))
        ids, sizes = reader.order((0, 0, 0)), []
        samples.read_image_bytes = lambda file, at, size, sizes=sizes: (sizes.append(size), read(file, at, size))[1]
        try:
            plan = reader.source.plan(ids)
            plan.prepare(len(ids))
            for sample_id in ids.tolist():
                plan.take(sample_id)
        finally:
            samples.read_image_bytes = read
        quality = shuffle_quality(order, cuts, 256)
        figures = (quality.displacement, quality.separation, quality.same_chunk)
        reads = [f"{len(sizes):,}", f"{statistics.mean(sizes) / 1e6:,.2f}"]
        rows.append([shuffle, *reads, *(number(figure, 3) for figure in figures)])
    header = ["data.shuffle", "reads", "MB a read", "displacement", "separation of neighbours", "same-chunk pairs"]
    return markdown(header, rows)


def main(arguments: list[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.images", description=__doc__)
    parser.add_argument("--images", type=int, default=2000, help="photographs; at least 300")
    num_images = max(parser.parse_args(arguments).images, 300)
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder, prepared = Path(name) / "files", Path(name) / "prepared"
        mean_bytes = make_photographs(folder, num_images)
        print(whole_pipelines(folder, prepared, num_images))
        print(f"\n{num_images:,} photographs of {mean_bytes / 1e3:.0f} KB, one thread.\n")
        print(decoding(folder, num_images))
        print(f"\n{held_in_memory()}\n")
        print(shuffling(prepared))
        print(
            f"\nReads: of the photographs, one rank, 128 a chunk. The rest: {_IMAGENET:,} samples, batches of 256, as "
            "multiples of what a full shuffle has on average (order.ShuffleQuality)."
        )


if __name__ == "__main__":
    main()
