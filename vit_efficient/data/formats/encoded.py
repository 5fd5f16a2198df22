"""Sources whose examples are encoded images: what they give, and the one place that decodes it.

Image folders, tars, prepared sets and TensorFlow Datasets are `EncodedSource`s: a format says where
the bytes of an example are (`encoded`), everything else is here. `jobs/prepare` copies the bytes,
the benchmark gives the same bytes to Pillow.
"""
from typing import NamedTuple

import numpy as np

from vit_efficient.data.host import images
from vit_efficient.data.host.jpeg import Jpeg


class Encoded(NamedTuple):
    """An image as a file holds it; `name` tells a person where it lies."""
    data: bytes
    name: str
    label: int


class EncodedSource:
    """A subclass has `classes`, `__len__`, `__str__` (its name in messages) and `encoded`.

    `max_bad_records` of its examples may be a BadImage (see `batches.py`).
    """
    classes: tuple[str, ...]
    max_bad_records, frames = 0, None

    def encoded(self, i: int) -> Encoded:
        """Example `i`, not decoded; OSError where its file cannot be read."""
        raise NotImplementedError

    def __getitem__(self, i: int) -> tuple[np.ndarray | Jpeg, int]:
        """Image uint8 [h, w, 3] and label; `badrecords.BadImage` where there is no image."""
        data, name, label = self.encoded(i)
        return images.decode(data, name), label
