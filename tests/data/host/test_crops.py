"""Host transforms against torchvision's rules, written out slowly, and against Pillow itself."""
import math
import random

import numpy as np
from PIL import Image
import pytest

from vit_efficient.data.host import crops as host, resize

RECIPE = dict(crop="random_resized", scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5,
              interpolation="bicubic", eval_crop=0.875)


def photo(height, width, seed=0):
    coarse = height // 4 + 2, width // 4 + 2, 3
    small = np.random.RandomState(seed).randint(0, 256, coarse, np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def torchvision_box(height, width, scale, ratio, uniform, randint):
    """RandomResizedCrop.get_params of torchvision 0.20, line by line."""
    area = height * width
    log_ratio = (math.log(ratio[0]), math.log(ratio[1]))
    for _ in range(10):
        target_area = area * uniform(scale[0], scale[1])
        aspect_ratio = math.exp(uniform(log_ratio[0], log_ratio[1]))
        w = int(round(math.sqrt(target_area * aspect_ratio)))
        h = int(round(math.sqrt(target_area / aspect_ratio)))
        if 0 < w <= width and 0 < h <= height:
            i = randint(0, height - h + 1)
            j = randint(0, width - w + 1)
            return i, j, h, w
    in_ratio = float(width) / float(height)
    if in_ratio < min(ratio):
        w = width
        h = int(round(w / min(ratio)))
    elif in_ratio > max(ratio):
        h = height
        w = int(round(h * max(ratio)))
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize("shape", [(375, 500), (8, 8), (500, 90), (32, 333)])
def test_crops_are_torchvisions(shape):
    for seed in range(300):
        slow, rng = np.random.default_rng(seed), np.random.default_rng(seed)
        recipe = *shape, (0.08, 1.0), (3 / 4, 4 / 3)
        expected = torchvision_box(*recipe, lambda a, b: a + (b - a) * slow.random(),
                                   lambda a, b: a + int(slow.random() * (b - a)))
        assert host.crop_box(*recipe, rng) == expected


def test_crops_have_torchvisions_distribution():
    stdlib, rng, n = random.Random(1), np.random.default_rng(2), 20_000
    args = 300, 400, (0.08, 1.0), (3 / 4, 4 / 3)
    slow = np.array([torchvision_box(*args, stdlib.uniform, stdlib.randrange)
                     for _ in range(n)], float)
    fast = np.array([host.crop_box(*args, rng) for _ in range(n)], float)
    for values in (lambda x: x[:, 0], lambda x: x[:, 1],
                   lambda x: x[:, 2] * x[:, 3], lambda x: x[:, 3] / x[:, 2]):
        a, b = np.sort(values(slow)), np.sort(values(fast))
        grid = np.concatenate([a, b])
        below = [np.searchsorted(x, grid, "right") for x in (a, b)]
        gap = np.abs(below[0] - below[1]).max() / n
        assert gap < 1.95 * (2 / n) ** 0.5  # Kolmogorov-Smirnov, 0.1 % level


@pytest.mark.parametrize("shape,box", [((10, 100), (0, 43, 10, 13)), ((100, 10), (43, 0, 13, 10)),
                                       ((1, 1), (0, 0, 1, 1)), ((1, 5), (0, 2, 1, 1)),
                                       ((5, 1), (2, 0, 1, 1))])
def test_boxes_that_never_fit(shape, box):
    # scale above what the ratio lets in: all ten tries fail and the centre is taken.
    scale = (0.99, 1.0) if min(shape) > 1 else (1e-4, 2e-4)
    assert host.crop_box(*shape, scale, (3 / 4, 4 / 3), np.random.default_rng(0)) == box


def test_a_box_has_at_least_one_pixel():
    assert host.crop_box(1, 3, (1.0, 1.0), (5.0, 6.0), np.random.default_rng(0)) == (0, 0, 1, 3)
    assert host.crop_box(2, 1, (1.0, 1.0), (1 / 6, 1 / 5), np.random.default_rng(0)) == (0, 0, 2, 1)


@pytest.mark.parametrize("shape, padding", [((40, 60), 5), ((50, 50), 0)])
def test_padded_random_crop_is_torchvisions(shape, padding):
    """Resize(24), RandomCrop(24, padding), black outside, pixel by pixel."""
    image, places = photo(*shape), []
    recipe = RECIPE | {"crop": "padded", "padding": padding, "flip": 0.0}
    height, width = (int(24 * side / min(shape)) for side in shape)
    padded = np.zeros((height + 2 * padding, width + 2 * padding, 3), np.uint8)
    padded[padding:padding + height, padding:padding + width] = host.resized(
        image, height, width, "bicubic")
    for seed in range(400):
        out = host.train(image, 24, np.random.default_rng(seed), **recipe)
        top, left = (int(u * (side - 24 + 1)) for u, side in
                     zip(np.random.default_rng(seed).random(2), padded.shape))
        np.testing.assert_array_equal(out, padded[top:top + 24, left:left + 24])
        places.append((top, left))
    assert [len(set(axis)) for axis in zip(*places)] == [side - 23 for side in padded.shape[:2]]


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_training_image_is_pillows(interpolation):
    image, flips = photo(120, 90), 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        top, left, height, width = host.crop_box(120, 90, (0.08, 1.0), (3 / 4, 4 / 3), rng)
        crop = Image.fromarray(image).crop((left, top, left + width, top + height))
        expected = crop.resize((32, 32), getattr(Image.Resampling, interpolation.upper()))
        if rng.random() < 0.5:
            expected, flips = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT), flips + 1
        recipe = RECIPE | {"interpolation": interpolation}
        out = host.train(image, 32, np.random.default_rng(seed), **recipe)
        assert np.abs(out - np.asarray(expected, int)).mean() < 0.3  # test_resize.py tells more
    assert 10 < flips < 30


def test_random_interpolation_is_one_of_the_two():
    image = photo(60, 60)
    recipe = RECIPE | {"crop": "resize", "flip": 0.0, "interpolation": "random"}
    kinds = [resize.resized(image, 24, 24, name) for name in resize.FILTERS]
    drawn = [host.train(image, 24, np.random.default_rng(seed), **recipe) for seed in range(60)]
    counts = [sum(np.array_equal(out, kind) for out in drawn) for kind in kinds]
    assert sum(counts) == 60 and min(counts) > 15


def test_resize_takes_the_whole_image():
    image = photo(40, 80)
    recipe = RECIPE | {"crop": "resize", "flip": 1.0}
    out = host.train(image, 20, np.random.default_rng(0), **recipe)
    expected = resize.resized(image, 20, 20, "bicubic")
    np.testing.assert_array_equal(out, expected[:, ::-1])


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (50, 50)])
def test_simple_random_crop_of_deit_iii(shape):
    """Resize(24), RandomCrop(24, padding=4, padding_mode="reflect"), pixel by pixel."""
    image, recipe, places = photo(*shape), RECIPE | {"crop": "src", "flip": 0.0}, []
    height, width = (int(24 * side / min(shape)) for side in shape)
    whole = host.resized(image, height, width, "bicubic")
    mirror = lambda i, side: side - 1 - abs(side - 1 - abs(i))
    padded = np.array([[whole[mirror(i, height), mirror(j, width)] for j in range(-4, width + 4)]
                       for i in range(-4, height + 4)])
    for seed in range(600):
        out = host.train(image, 24, np.random.default_rng(seed), **recipe)
        top, left = (int(u * (side + 8 - 24 + 1)) for u, side in
                     zip(np.random.default_rng(seed).random(2), (height, width)))
        np.testing.assert_array_equal(out, padded[top:top + 24, left:left + 24])
        places.append((top, left))
    assert [len(set(axis)) for axis in zip(*places)] == [height + 8 - 23, width + 8 - 23]


def test_simple_random_crop_of_a_tiny_image():
    recipe = RECIPE | {"crop": "src"}
    out = host.train(photo(8, 8)[:1, :2], 3, np.random.default_rng(0), **recipe)
    assert out.shape == (3, 3, 3)


@pytest.mark.parametrize("shape,size,eval_crop,resized", [
    ((375, 500), 224, 0.875, (256, 341)), ((500, 375), 224, 0.875, (341, 256)),
    ((301, 300), 224, 0.9, (248, 248)),
    ((8, 8), 32, 1.0, (32, 32)), ((60, 63), 60, 1.0, (60, 63)), ((50, 77), 60, 1.0, (60, 92))])
def test_evaluation_image_is_pillows(shape, size, eval_crop, resized):
    image = photo(*shape)
    whole = Image.fromarray(image).resize(resized[::-1], Image.Resampling.BICUBIC)
    top, left = (int(round((side - size) / 2.0)) for side in resized)
    expected = np.asarray(whole.crop((left, top, left + size, top + size)))
    out = host.evaluate(image, size, eval_crop=eval_crop, interpolation="bicubic")
    np.testing.assert_array_equal(out, expected)
