"""Colour jitter, and the ThreeAugment of DeiT III (Touvron et al., ECCV 2022), with Pillow.

`data/augment.py` appends them to a recipe's transforms after crop and flip; every draw comes from
the example's own generator.
"""
import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
BLUR_RADIUS = (0.1, 2.0)                                # standard deviation, in pixels
SOLARIZE_FROM = 128


def color_jitter(image: Image.Image, rng: np.random.Generator, *, strength: float) -> Image.Image:
    """Brightness, contrast and saturation, in a random order, each times a factor uniform in
    `1 - strength` to `1 + strength` (torchvision's ColorJitter without hue)."""
    factors = [1 - strength + 2 * strength * rng.random() for _ in ENHANCERS]
    order = sorted(range(len(ENHANCERS)), key=[rng.random() for _ in ENHANCERS].__getitem__)
    for i in order:
        image = ENHANCERS[i](image).enhance(factors[i])
    return image


def three_augment(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """One of three, equally likely: grayscale, solarize from 128 on, Gaussian blur of a radius
    uniform in 0.1 to 2."""
    choice = int(3 * rng.random())
    if choice == 0:
        return image.convert("L").convert("RGB")
    if choice == 1:
        return ImageOps.solarize(image, SOLARIZE_FROM)
    low, high = BLUR_RADIUS
    return image.filter(ImageFilter.GaussianBlur(low + (high - low) * rng.random()))
