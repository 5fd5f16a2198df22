"""Photographs small enough for slow loops: two real ones that come with scikit-learn, one made."""
from functools import cache

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

HEIGHT, WIDTH = 77, 97                  # of the one that is made


@cache
def photos() -> tuple[Image.Image, ...]:
    """RGB images of 96 by 64 pixels."""
    return tuple(Image.fromarray(image).resize((96, 64), Image.Resampling.BICUBIC)
                 for image in load_sample_images().images)


def photo() -> Image.Image:
    """Smooth colours under noise, RGB."""
    coarse = np.random.RandomState(0).randint(0, 256, (9, 12, 3), np.uint8)
    smooth = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    noise = np.random.RandomState(1).randint(-20, 20, (HEIGHT, WIDTH, 3))
    return Image.fromarray(np.clip(np.asarray(smooth, int) + noise, 0, 255).astype(np.uint8))
