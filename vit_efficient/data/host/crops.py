"""Transforms of one image on the host: uint8 [h, w, 3] -> uint8 [size, size, 3].

An image may also be a `jpeg.Jpeg`, which decodes its crop alone. Training images are resized fast,
those of an evaluation by Pillow, as the papers' accuracies were measured.

The rules are torchvision's (RandomResizedCrop, RandomHorizontalFlip, Resize, CenterCrop), which the
papers' recipes use. Only `rng.random` is drawn from: NumPy keeps its stream, but not that of the
other distributions.
"""
import math

import numpy as np

from vit_efficient.data.host.resize import pillow_resized, resized

SRC_PADDING = 4


def train(image: np.ndarray, size: int, rng: np.random.Generator, *, crop: str,
          scale: tuple[float, float], ratio: tuple[float, float], flip: float,
          interpolation: str, eval_crop: float, padding: int = 0) -> np.ndarray:
    """A square of the image, maybe mirrored; `crop` is of `make_augment`."""
    if crop == "random_resized":
        top, left, height, width = crop_box(*image.shape[:2], scale, ratio, rng)
        image = image[top:top + height, left:left + width]
    if interpolation == "random":
        interpolation = "bilinear" if rng.random() < 0.5 else "bicubic"
    if crop == "src":
        image = padded_crop(image, size, interpolation, rng, SRC_PADDING, mode="reflect")
    elif crop == "padded":
        image = padded_crop(image, size, interpolation, rng, padding, mode="constant")
    elif crop == "center":
        image = evaluate(image, size, eval_crop=eval_crop, interpolation=interpolation)
    else:
        image = resized(image, size, size, interpolation)
    return image[:, ::-1] if rng.random() < flip else image


def padded_crop(image: np.ndarray, size: int, interpolation: str, rng: np.random.Generator,
                padding: int, *, mode: str) -> np.ndarray:
    """The short side resized to `size`, every side padded by `padding` pixels, a square of `size`
    at a uniform place. Mirrored outwards (`reflect`) by 4 it is the simple random crop of DeiT III,
    padded black (`constant`) torchvision's RandomCrop, as the papers transfer to CIFAR."""
    image = resized(image, *short_side_to(size, *image.shape[:2]), interpolation)
    image = np.pad(image, ((padding, padding),) * 2 + ((0, 0),), mode=mode)
    top, left = (int(rng.random() * (side - size + 1)) for side in image.shape[:2])
    return image[top:top + size, left:left + size]


def evaluate(image: np.ndarray, size: int, rng: np.random.Generator | None = None, *,
             eval_crop: float, interpolation: str) -> np.ndarray:
    """The short side resized to `size / eval_crop`, then the centre of `size` by `size`; nothing is
    drawn."""
    image = pillow_resized(image, *short_side_to(int(size / eval_crop), *image.shape[:2]),
                           interpolation)
    top, left = (round((side - size) / 2) for side in image.shape[:2])
    return image[top:top + size, left:left + size]


def short_side_to(size: int, height: int, width: int) -> tuple[int, int]:
    """The height and width of the image when its short side has `size` pixels, the other one
    rounded down, as torchvision does."""
    least = min(height, width)
    return int(size * height / least), int(size * width / least)


def crop_box(height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float],
             rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(top, left, height, width) of torchvision's RandomResizedCrop: a share `scale` of the area,
    uniform, and an aspect ratio width/height in `ratio`, uniform in the logarithm; after ten boxes
    that do not fit, the largest centred one whose ratio is allowed."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * rng.random())
        aspect = math.exp(low + (high - low) * rng.random())
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.random() * (height - h + 1)), int(rng.random() * (width - w + 1)), h, w
    # At least one pixel: an image one pixel high has no box of an allowed ratio.
    w = max(1, min(width, round(height * ratio[1])))
    h = max(1, min(height, round(width / ratio[0])))
    return (height - h) // 2, (width - w) // 2, h, w
