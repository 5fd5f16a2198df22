"""Encoded images and their pixels: the one place that reads an image's format.

What the bytes say counts, not the file's name. As in torchvision's ImageFolder, any mode becomes
RGB: gray three times, CMYK and palettes converted, an alpha channel dropped, the first frame of
many; an EXIF orientation is ignored. 16-bit grays keep their upper eight bits. What is empty, cut
off, damaged, no image or no 8- or 16-bit one is a BadImage.
"""
from functools import partial
import io

import numpy as np
from PIL import Image

from vit_efficient.data.badrecords import BadImage
from vit_efficient.data.host import jpeg

# Pillow's other readers start programs (EPS) or read what no data set holds.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "TIFF")


def decode(data: bytes, name: str) -> np.ndarray | jpeg.Jpeg:
    """The pixels as RGB: uint8 [h, w, 3], of an ordinary JPEG as an array that decodes what is
    looked at (see `jpeg.py`); BadImage, with `name`, where there are none."""
    size = jpeg.size(data)
    return jpeg.Jpeg(data, size, partial(_decode, name=name)) if size else _decode(data, name)


def _decode(data: bytes, name: str) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.mode.startswith("I;16"):
                levels = (np.asarray(image) >> 8).astype(np.uint8)
                return levels[..., None].repeat(3, -1)
            if image.mode in ("I", "F"):
                raise ValueError(f"pixels of 32 bits, mode {image.mode}")
            return np.asarray(image.convert("RGB"))
    except Exception as error:                # Pillow's readers meet damage with errors of any type
        raise _bad(data, name, error) from error


def size(data: bytes, name: str) -> tuple[int, int]:
    """Height and width, from the header; BadImage, with `name`, where there is none."""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            return image.height, image.width
    except Exception as error:
        raise _bad(data, name, error) from error


def _bad(data: bytes, name: str, error: Exception) -> BadImage:
    what = ("the file is empty" if not data else
            "no known format" if isinstance(error, Image.UnidentifiedImageError) else error)
    return BadImage(f"{name}: no readable image ({what})")
