"""Image files: how one is made, and bytes that are no whole image."""
import io

import numpy as np
from PIL import Image

NOISE = Image.fromarray(np.random.RandomState(0).randint(0, 256, (40, 60, 3), np.uint8))


def encode(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


# Kind -> (bytes, part of what is said of them)
BAD = {
    "empty": (b"", "the file is empty"),
    "html": (b"<html><body>404 Not Found</body></html>", "no known format"),
    "text": (b"no image at all", "no known format"),
    "truncated jpeg": (encode(NOISE, "JPEG")[:900], "truncated"),
    "truncated png": (encode(NOISE, "PNG")[:2000], ""),
    "damaged png": (encode(NOISE, "PNG").replace(b"IDAT", b"IDAX"), ""),
    "32 bits": (encode(Image.new("F", (2, 2)), "TIFF"), "pixels of 32 bits"),
    "a program": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n%%EndComments\n", "no known"),
}
