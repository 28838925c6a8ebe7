"""Scaled decoding and the compiled transforms, held against Pillow, torchvision and the tensor operations."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

import synthetic_sources as synthetic
from andscale.config_data import AugmentConfig
from andscale.data.augment import (
    crop_and_resize,
    draw_augmentation,
    evaluation_boxes,
    jitter_colours,
    normalise,
    training_boxes,
)
from andscale.data.decoding import NETWORK_INPUT, WHOLE_INTENSITIES, colours_of, decode_and_transform, reduction_for
from andscale.data.images import decode_rgb, image_size, open_rgb
from andscale.data.pixel_kernels import transform
from andscale.errors import RunError

PHOTO = Image.fromarray(load_sample_images().images[1])  # 427 x 640, a flower
NEUTRAL = (np.zeros(4, np.float32), np.zeros(0, np.int64), np.bool_(False))


def jpeg(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def run(pixels, box, size, flip=False, colours=NEUTRAL, channels=WHOLE_INTENSITIES, dtype=np.uint8):
    out = np.empty((size, size, 3), dtype)
    transform(pixels, np.asarray(box, np.float64), np.bool_(flip), colours, channels, out)
    return out


@pytest.mark.parametrize(("h", "w", "size"), [(28, 28, 28), (40, 60, 16), (9, 7, 24), (1, 1, 8), (1, 50, 8)])
def test_crops_equal_pillow(rng, h, w, size):
    draw = draw_augmentation(AugmentConfig(), 12, (0, 0, 0, 0))
    for row, (top, left, height, width) in enumerate(training_boxes(draw, np.full(12, h), np.full(12, w))):
        pixels = rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
        mine = run(pixels, (top, left, height, width), size, draw.flips[row])
        cropped = Image.fromarray(pixels).crop((left, top, left + width, top + height))
        pillow = np.asarray(cropped.resize((size, size), Image.Resampling.BILINEAR), int)
        # Pillow rounds after each direction
        assert np.abs(mine - (pillow[:, ::-1] if draw.flips[row] else pillow)).max() <= 1


@pytest.mark.parametrize("seed", range(8))
def test_the_compiled_loops_equal_the_tensor_operations(rng, seed):
    """All in one: crop, flip, the four jitters in each step's own order, grayscale, normalisation."""
    images = rng.integers(0, 256, (6, 40, 30, 3), dtype=np.uint8)
    images[5] = 77  # gray: no hue at all
    draw = draw_augmentation(AugmentConfig(), 6, (seed, 0, 0, 0))
    boxes = training_boxes(draw, np.full(6, 40), np.full(6, 30))
    tensors = torch.from_numpy(images).permute(0, 3, 1, 2)
    expected = normalise(jitter_colours(crop_and_resize(tensors, boxes, draw.flips, 20), draw)).numpy()
    jitter, orders, is_gray = colours_of(draw, 6)
    for row in range(6):
        colours = (jitter[row], orders[row], is_gray[row])
        mine = run(images[row], boxes[row], 20, draw.flips[row], colours, NETWORK_INPUT, np.float32)
        np.testing.assert_allclose(mine.transpose(2, 0, 1), expected[row], atol=2e-4)


@pytest.mark.parametrize(
    ("which", "name", "value"),
    [(0, "brightness", 1.3), (1, "contrast", 0.7), (2, "saturation", 1.4), (3, "hue", 0.3), (3, "hue", -0.4)],
)
def test_jitters_equal_torchvision(which, name, value):
    from torchvision.transforms.v2 import functional

    pixels = np.array(PHOTO.crop((100, 100, 164, 164)))
    jitter = np.array([1, 1, 1, 0], np.float32)
    jitter[which] = value
    scale = np.array([[1] * 3, [0] * 3], np.float32)
    mine = run(pixels, (0, 0, 64, 64), 64, False, (jitter, np.arange(4), np.bool_(False)), scale, np.float32)
    expected = getattr(functional, f"adjust_{name}")(torch.from_numpy(pixels).permute(2, 0, 1) / 255, value)
    np.testing.assert_allclose(mine, expected.permute(1, 2, 0), atol=3e-4)


@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_a_scaled_decode_looks_like_the_whole_image_resized(reduction, subsampling):
    """Less than two of 255 intensities between them in the mean over a photograph's crops, and less than half of what
    a box that is one pixel of the output beside its place would make.
    """
    size, rng = 48, np.random.default_rng(0)
    data = jpeg(PHOTO, quality=90, subsampling=subsampling)
    whole, differences = decode_rgb(data), []
    for side in rng.integers(size, 427, 60):
        box = np.array([rng.integers(427 - side + 1), rng.integers(10, 640 - side + 1), side, side])
        if reduction_for(box, size) != reduction:
            continue
        out = np.empty((size, size, 3), np.uint8)
        decode_and_transform(data, (427, 640), (box, np.bool_(False)), NEUTRAL, out)
        differences.append(np.abs(out.astype(int) - run(whole, box, size)).mean())
        beside = run(whole, box - np.array([0, -(-side // size), 0, 0]), size)
        assert np.abs(out.astype(int) - beside).mean() > 2 * differences[-1]
    assert differences
    assert np.mean(differences) < (2 if reduction > 1 else 1e-9)
    assert reduction == 1 or np.mean(differences) > 0.1  # it is another decode


@pytest.mark.parametrize(
    ("box", "expected"), [((9, 9, 223, 900), 1), ((0, 0, 447, 448), 1), ((0, 0, 448, 448), 2), ((0, 0, 5000, 1792), 8)]
)
def test_a_crop_keeps_the_pixels_of_the_output(box, expected):
    assert reduction_for(np.array(box), 224) == expected


@pytest.mark.parametrize("path", ["scaled", "whole"])
def test_large_images_have_torchvisions_crops(path):
    """Boxes are drawn on the whole image, whatever it is decoded at: tops, lefts and sides of 3,000 crops against
    torchvision's own generator, at two-sample Kolmogorov-Smirnov's p = 0.001.
    """
    from torchvision.transforms import RandomResizedCrop

    n, (height, width) = 3000, (2000, 3000) if path == "scaled" else (375, 500)
    draw = draw_augmentation(AugmentConfig(), n, (3, 0, 0, 0))
    boxes = training_boxes(draw, np.full(n, height), np.full(n, width))
    reductions = np.array([reduction_for(box, 224) for box in boxes])
    assert (reductions == 1).all() if path == "whole" else (reductions >= 4).mean() > 0.7
    # as it arrives at the scaled image, and back
    mine = boxes / reductions[:, None] * reductions[:, None]
    torch.manual_seed(0)
    image = torch.empty(3, height, width, device="meta")
    theirs = np.array([RandomResizedCrop.get_params(image, (0.2, 1.0), (3 / 4, 4 / 3)) for _ in range(n)], float)
    for measure in (
        lambda b: b[:, 2] * b[:, 3],
        lambda b: b[:, 3] / b[:, 2],
        lambda b: b[:, 0],
        lambda b: b[:, 1],
    ):
        a, b = np.sort(measure(mine)), np.sort(measure(theirs))
        grid = np.concatenate([a, b])
        distance = np.abs(np.searchsorted(a, grid, "right") - np.searchsorted(b, grid, "right")).max() / n
        assert distance < 1.95 * np.sqrt(2 / n)


EDGES = synthetic.EVERY_KIND | {
    "one pixel.jpg": jpeg(PHOTO.crop((0, 0, 1, 1))),
    "one pixel.png": synthetic.encoded("RGB", "PNG", (1, 1)),
    "wide.jpg": jpeg(PHOTO.resize((20_000, 30))),
    "tall.jpg": jpeg(PHOTO.resize((30, 20_000)).convert("L")),
    "progressive.jpg": jpeg(PHOTO.resize((97, 61)), progressive=True),
    "rgb.jpg": jpeg(PHOTO.resize((97, 61)), keep_rgb=True),
    "4:4:4.jpg": jpeg(PHOTO.resize((97, 61)), subsampling=0),
    "tail.jpg": jpeg(PHOTO.resize((97, 61))) + b"behind the end",
    "huge.jpg": jpeg(PHOTO.resize((1920, 1281))),
}


@pytest.mark.parametrize("reduction", [1, 2, 8])
@pytest.mark.parametrize("name", EDGES)
def test_the_fast_decoder_gives_pillows_pixels(name, reduction):
    data = EDGES[name]
    expected = np.asarray(open_rgb(data, reduction))
    np.testing.assert_array_equal(decode_rgb(data, reduction), expected)
    whole = open_rgb(data)
    assert image_size(data) == (whole.height, whole.width)


@pytest.mark.parametrize("name", EDGES)
def test_every_kind_becomes_a_crop(name):
    data, draw = EDGES[name], draw_augmentation(AugmentConfig(), 8, (0, 0, 0, 0))
    height, width = image_size(data)
    whole = np.array(open_rgb(data))
    central = evaluation_boxes(np.array([height]), np.array([width]), 32)
    for box in (*training_boxes(draw, np.full(8, height), np.full(8, width)), *central):
        out = np.empty((32, 32, 3), np.uint8)
        decode_and_transform(data, (height, width), (box, np.bool_(False)), NEUTRAL, out)
        assert np.abs(out.astype(int) - run(whole, box, 32)).mean() < 4


def test_cmyk_is_pillows_by_design(monkeypatch):
    """Adobe's inverted form and its conversion are one piece of code, whoever asks."""
    import simplejpeg

    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_, **__: pytest.fail("not for the fast decoder"))
    data = synthetic.EVERY_KIND["cmyk.JPEG"]
    np.testing.assert_array_equal(decode_rgb(data), np.asarray(open_rgb(data)))


def attempt(function, data):
    try:
        return np.asarray(function(data)).tolist()
    except RunError as error:
        return str(error)


@pytest.mark.parametrize("progressive", [False, True])
def test_cut_jpegs_are_errors_with_pillows_reason(progressive):
    """Never an image that is gray from somewhere on."""
    data = jpeg(PHOTO.resize((64, 48)), progressive=progressive)
    for length in [*range(0, len(data) - 2, 97), *range(len(data) - 12, len(data) - 2)]:
        found = attempt(decode_rgb, data[:length])
        assert isinstance(found, str), length
        assert found == attempt(open_rgb, data[:length])
        assert "\n" not in found


def test_damaged_jpegs_are_what_pillow_makes_of_them(rng):
    data = jpeg(PHOTO.resize((64, 48)))
    errors = 0
    for _ in range(120):
        damaged = bytearray(data)
        damaged[rng.integers(2, len(data))] ^= 1 << int(rng.integers(8))
        found = attempt(decode_rgb, bytes(damaged))
        assert found == attempt(open_rgb, bytes(damaged))
        errors += isinstance(found, str)
    assert 0 < errors < 120
