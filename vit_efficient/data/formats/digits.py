"""The 1,797 handwritten digits that come with scikit-learn, for tests and demonstrations.

`data/sources.open_data` calls `open_digits` for `data.source = digits`.
"""
import numpy as np
from sklearn.datasets import load_digits

from vit_efficient.data import order
from vit_efficient.data.sources import Arrays

# The validation images were drawn once, with this seed, and never chosen by a result.
SPLIT_SEED = 1797


def open_digits() -> tuple[Arrays, Arrays]:
    """Gray levels 0 to 16 as 0 to 255 in three equal channels; a fifth of each class validates."""
    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None].repeat(3, -1)
    val = np.zeros(len(pixels), bool)
    for label in range(10):
        members = np.flatnonzero(digits.target == label)
        first = np.arange(round(len(members) / 5))
        val[members[order.shuffled(first, len(members), SPLIT_SEED, label)]] = True
    classes = tuple(map(str, digits.target_names))
    train, val = (Arrays(images=pixels[chosen], labels=digits.target[chosen], classes=classes,
                         name=f"digits {name}")
                  for name, chosen in (("train", ~val), ("val", val)))
    return train, val
