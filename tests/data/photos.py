"""Two real photographs that come with scikit-learn, small enough for slow loops."""
from functools import cache

from PIL import Image
from sklearn.datasets import load_sample_images


@cache
def photos() -> tuple[Image.Image, ...]:
    """RGB images of 96 by 64 pixels."""
    return tuple(Image.fromarray(image).resize((96, 64), Image.Resampling.BICUBIC)
                 for image in load_sample_images().images)
