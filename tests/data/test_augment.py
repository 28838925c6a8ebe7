import colorsys

import numpy as np
import pytest
import torch
from PIL import Image

from andscale.config_data import AugmentConfig
from andscale.data.augment import (
    PIXEL_MEAN,
    PIXEL_STD,
    crop_and_resize,
    draw_augmentation,
    evaluation_boxes,
    jitter_colours,
    normalise,
    training_boxes,
)

STRONG = AugmentConfig()
NONE = AugmentConfig(
    min_crop_scale=1, flip_probability=0, brightness=0, contrast=0, saturation=0, hue=0, grayscale_probability=0
)


def _pixels(rng, n, h, w):
    return rng.integers(0, 256, (n, 3, h, w), dtype=np.uint8)


@pytest.mark.parametrize(("h", "w", "size"), [(28, 28, 28), (40, 60, 16), (9, 7, 24)])
def test_crop_and_resize_equals_pillow(rng, h, w, size):
    images = _pixels(rng, 12, h, w)
    draw = draw_augmentation(STRONG, 12, (0, 0, 0, 0))
    boxes = training_boxes(draw, np.full(12, h), np.full(12, w))
    mine = crop_and_resize(torch.from_numpy(images), boxes, draw.flips, size)
    for i, (top, left, height, width) in enumerate(boxes):
        # cropped first: like torchvision, pixels outside the crop do not count
        cropped = Image.fromarray(images[i].transpose(1, 2, 0)).crop((left, top, left + width, top + height))
        pillow = np.asarray(cropped.resize((size, size), Image.Resampling.BILINEAR), np.float32) / 255
        if draw.flips[i]:
            pillow = pillow[:, ::-1]
        # Pillow rounds to whole intensities after each direction
        np.testing.assert_allclose(mine[i].numpy().transpose(1, 2, 0), pillow, atol=1.5 / 255)


def test_crops_have_torchvisions_distribution():
    """Areas, ratios and centres of 4,000 crops against torchvision's own generator."""
    from torchvision.transforms import v2

    n, h, w = 4000, 60, 100
    draw = draw_augmentation(STRONG, n, (1, 0, 0, 0))
    mine = training_boxes(draw, np.full(n, h), np.full(n, w)).astype(float)
    transform = v2.RandomResizedCrop(32, scale=(0.2, 1.0))
    torch.manual_seed(0)
    image = torch.zeros(3, h, w, dtype=torch.uint8)
    theirs = np.array(
        [
            [p[k] for k in ("top", "left", "height", "width")]
            for p in (transform.make_params([image]) for _ in range(n))
        ],
        float,
    )
    for measure in (
        lambda b: b[:, 2] * b[:, 3] / (h * w),
        lambda b: np.log(b[:, 3] / b[:, 2]),
        lambda b: b[:, 0] + b[:, 2] / 2,
        lambda b: b[:, 1] + b[:, 3] / 2,
    ):
        a, b = np.sort(measure(mine)), np.sort(measure(theirs))
        # two-sample Kolmogorov-Smirnov at about p = 0.001
        grid = np.concatenate([a, b])
        distance = np.abs(np.searchsorted(a, grid, "right") - np.searchsorted(b, grid, "right")).max() / n
        assert distance < 1.95 * np.sqrt(2 / n)


def test_boxes_lie_inside_images_of_any_shape():
    draw = draw_augmentation(STRONG, 500, (2, 0, 0, 0))
    rng = np.random.default_rng(0)
    heights, widths = rng.integers(1, 400, 500), rng.integers(1, 400, 500)
    for boxes in (training_boxes(draw, heights, widths), evaluation_boxes(heights, widths, 32)):
        top, left, height, width = boxes.T
        assert (top >= 0).all() and (left >= 0).all() and (height > 0).all() and (width > 0).all()
        assert (top + height <= heights).all() and (left + width <= widths).all()


def test_without_augmentation_nothing_changes(rng):
    images = torch.from_numpy(_pixels(rng, 5, 12, 12))
    draw = draw_augmentation(NONE, 5, (0, 0, 0, 0))
    boxes = training_boxes(draw, np.full(5, 12), np.full(5, 12))
    # a ratio other than 1 cannot have the whole area: with scale 1 only the central crop is left, the whole square
    out = jitter_colours(crop_and_resize(images, boxes, draw.flips, 12), draw)
    torch.testing.assert_close(out, images / 255)


def test_the_evaluation_crop_is_the_central_square():
    np.testing.assert_array_equal(evaluation_boxes(np.array([28]), np.array([28]), 28), [[0, 0, 28, 28]])
    np.testing.assert_array_equal(evaluation_boxes(np.array([256]), np.array([300]), 224), [[16, 38, 224, 224]])
    np.testing.assert_array_equal(evaluation_boxes(np.array([1]), np.array([1000]), 224), [[0, 499, 1, 1]])


def _only(**options):
    return AugmentConfig(**(NONE.model_dump() | options))


def _draw_with(which, value, n=4):
    draw = draw_augmentation(NONE, n, (0, 0, 0, 0))
    draw.jitter[:, which] = value
    return draw


@pytest.mark.parametrize(
    ("which", "name", "value"),
    [(0, "brightness", 1.3), (0, "brightness", 0.6), (1, "contrast", 0.7), (1, "contrast", 1.4), (2, "saturation", 1.4),
     (2, "saturation", 0.6), (3, "hue", 0.3), (3, "hue", -0.4)],
)  # fmt: skip
def test_colour_jitter_equals_torchvision(rng, which, name, value):
    from torchvision.transforms.v2 import functional

    images = torch.from_numpy(rng.random((4, 3, 9, 9), dtype=np.float32))
    expected = getattr(functional, f"adjust_{name}")(images, value)
    torch.testing.assert_close(jitter_colours(images, _draw_with(which, value)), expected, atol=2e-4, rtol=0)


def test_a_hue_shift_equals_colorsys(rng):
    images = torch.from_numpy(rng.random((1, 3, 4, 4), dtype=np.float32))
    shifted = jitter_colours(images, _draw_with(3, 0.21, 1))
    for y in range(4):
        for x in range(4):
            h, s, v = colorsys.rgb_to_hsv(*images[0, :, y, x].tolist())
            expected = colorsys.hsv_to_rgb((h + 0.21) % 1, s, v)
            np.testing.assert_allclose(shifted[0, :, y, x], expected, atol=1e-5)


def test_grayscale_keeps_three_equal_channels(rng):
    images = torch.from_numpy(rng.random((50, 3, 4, 4), dtype=np.float32))
    draw = draw_augmentation(_only(grayscale_probability=0.5), 50, (0, 0, 0, 0))
    out = jitter_colours(images, draw)
    is_gray = (out[:, 0] == out[:, 1]).all(dim=(1, 2)) & (out[:, 1] == out[:, 2]).all(dim=(1, 2))
    np.testing.assert_array_equal(is_gray, draw.grayscale)
    assert 10 < draw.grayscale.sum() < 40


def test_draws_depend_on_the_whole_key_and_slices_are_rows_of_the_batch():
    whole = draw_augmentation(STRONG, 10, (1, 2, 3, 4))
    np.testing.assert_array_equal(whole[3:6].areas, draw_augmentation(STRONG, 10, (1, 2, 3, 4)).areas[3:6])
    for key in ((0, 2, 3, 4), (1, 0, 3, 4), (1, 2, 0, 4), (1, 2, 3, 0)):
        assert (draw_augmentation(STRONG, 10, key).areas != whole.areas).all()


def test_normalised_images_have_imagenets_statistics():
    images = torch.tensor(PIXEL_MEAN)[None, :, None, None] + torch.tensor(PIXEL_STD)[None, :, None, None]
    torch.testing.assert_close(normalise(images), torch.ones(1, 3, 1, 1))
