"""RandAugment (Cubuk et al., 2020) as timm's `rand-m<magnitude>-mstd0.5-inc1`, with Pillow.

Two operations an image, drawn with replacement from fifteen; "inc1" are the forms of posterize,
solarize and the four enhancers that grow with the magnitude.
"""
from collections.abc import Callable
import math

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from vit_efficient.data.host.resize import FILTERS

COUNT, PROBABILITY, NOISE, LARGEST = 2, 0.5, 0.5, 10
FILL = (124, 116, 104)                                  # ImageNet's mean colour


def rand_augment(image: Image.Image, rng: np.random.Generator, *, magnitude: float,
                 interpolation: str) -> Image.Image:
    """An RGB image after two drawn operations, each left out half of the time.

    Args:
      magnitude: 0 to 10; each operation's own is normal around it with standard deviation 0.5,
        clipped to 0..10.
      interpolation: of what moves pixels: "bicubic", "bilinear" or, drawn each time, "random".
    """
    for _ in range(COUNT):
        operation = list(OPERATIONS.values())[int(rng.random() * len(OPERATIONS))]
        if rng.random() < PROBABILITY:
            level = min(max(magnitude + NOISE * normal(rng), 0), LARGEST) / LARGEST
            signed = -level if rng.random() < 0.5 else level
            kind = interpolation
            if kind == "random":
                kind = "bilinear" if rng.random() < 0.5 else "bicubic"
            image = operation(image, level, signed, FILTERS[kind])
    return image


def normal(rng: np.random.Generator) -> float:
    """A standard normal number (Box and Muller, 1958): of NumPy's streams only that of `random` is
    sure to stay."""
    radius = math.sqrt(-2 * math.log(1 - rng.random()))
    return radius * math.cos(2 * math.pi * rng.random())


def posterize(image: Image.Image, bits: int) -> Image.Image:
    """The highest `bits` bits of every value, 0 to 8; the others are 0."""
    return image.point([value & (256 - 2 ** (8 - bits)) for value in range(256)] * 3)


def solarize_add(image: Image.Image, amount: int) -> Image.Image:
    """`amount` added to values below 128."""
    return image.point([min(value + amount, 255) if value < 128 else value
                        for value in range(256)] * 3)


def affine(image: Image.Image, matrix: tuple[float, float, float, float, float, float],
           kind: Image.Resampling) -> Image.Image:
    """The pixel at (x, y) comes from (a x + b y + c, d x + e y + f); from outside, the fill."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, kind, fillcolor=FILL)


# (image, level, level with its sign, filter) -> image; a level is the magnitude over 10.
OPERATIONS: dict[str, Callable[[Image.Image, float, float, Image.Resampling], Image.Image]] = {
    "AutoContrast": lambda image, u, s, kind: ImageOps.autocontrast(image),
    "Equalize": lambda image, u, s, kind: ImageOps.equalize(image),
    "Invert": lambda image, u, s, kind: ImageOps.invert(image),
    "Rotate": lambda image, u, s, kind: image.rotate(30 * s, kind, fillcolor=FILL),
    "Posterize": lambda image, u, s, kind: posterize(image, 4 - int(4 * u)),
    "Solarize": lambda image, u, s, kind: ImageOps.solarize(image, 256 - int(256 * u)),
    "SolarizeAdd": lambda image, u, s, kind: solarize_add(image, int(110 * u)),
    "Color": lambda image, u, s, kind: ImageEnhance.Color(image).enhance(1 + 0.9 * s),
    "Contrast": lambda image, u, s, kind: ImageEnhance.Contrast(image).enhance(1 + 0.9 * s),
    "Brightness": lambda image, u, s, kind: ImageEnhance.Brightness(image).enhance(1 + 0.9 * s),
    "Sharpness": lambda image, u, s, kind: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * s),
    "ShearX": lambda image, u, s, kind: affine(image, (1, 0.3 * s, 0, 0, 1, 0), kind),
    "ShearY": lambda image, u, s, kind: affine(image, (1, 0, 0, 0.3 * s, 1, 0), kind),
    "TranslateXRel": lambda image, u, s, kind: affine(
        image, (1, 0, 0.45 * s * image.width, 0, 1, 0), kind),
    "TranslateYRel": lambda image, u, s, kind: affine(
        image, (1, 0, 0, 0, 1, 0.45 * s * image.height), kind),
}
