"""JPEG photos that are decoded where they are looked at: a crop costs less than the whole photo.

libjpeg-turbo decodes, from version 3 on only what a rectangle needs; the package `turbojpeg` brings
that library. Without it the whole photo is decoded (simplejpeg) and cut. Each gives exactly
Pillow's pixels, since all three use the same inverse transform and chroma upsampling.
"""
from collections.abc import Callable
import ctypes
from functools import cache
import importlib.util

import numpy as np
from PIL import Image
import simplejpeg

# An iMCU's width in pixels by the library's number of the chroma subsampling: a region must start
# at a multiple.
_UNIT_WIDTH = {0: 8, 1: 16, 2: 16, 3: 8, 4: 8, 5: 32, 6: 8}
_DECOMPRESS, _SUBSAMPLING, _RGB = 1, 4, 0
# Pixels of a photo up to which decoding the whole of it takes less time than asking for a part.
_SMALL = 64 * 64
# Upsampled chroma looks at the neighbours: pixels decoded around a rectangle, to be Pillow's.
_MARGIN = 2


class Jpeg:
    """An encoded photo that reads as an array uint8 [h, w, 3]: `photo.shape`, `np.asarray(photo)`,
    and `photo[top:bottom, left:right]`, which decodes little more than these pixels.

    `otherwise(data)` decodes the whole photo where the bytes turn out to be damaged.
    """

    def __init__(self, data: bytes, size: tuple[int, int], otherwise: Callable):
        self.data, self.shape, self.otherwise = data, (*size, 3), otherwise

    def __getitem__(self, window: tuple[slice, slice]) -> np.ndarray:
        (top, bottom, _), (left, right, _) = (
            part.indices(side) for part, side in zip(window, self.shape))
        try:
            if self.shape[0] * self.shape[1] > _SMALL and (turbo := _turbo()):
                return _region(turbo, self.data, self.shape, top, bottom, left, right)
            return simplejpeg.decode_jpeg(self.data)[top:bottom, left:right]
        except ValueError:
            return self.otherwise(self.data)[top:bottom, left:right]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self[:, :], dtype)


def size(data: bytes) -> tuple[int, int] | None:
    """Height and width of an ordinary whole JPEG, gray or YCbCr; None for all other bytes (also
    for CMYK, cut-off files and what Pillow calls a decompression bomb)."""
    if not (data.startswith(b"\xff\xd8") and data.endswith(b"\xff\xd9")):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except (ValueError, KeyError):                       # KeyError: an uncommon subsampling
        return None
    ordinary = colours in ("YCbCr", "Gray") and height * width <= Image.MAX_IMAGE_PIXELS
    return (height, width) if ordinary else None


def decoder() -> str:
    """What decodes crops on this machine, for reports."""
    return "libjpeg-turbo, partial" if _turbo() else "simplejpeg, whole"


class _Region(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("x", "y", "width", "height")]


def _region(turbo: ctypes.CDLL, data: bytes, shape: tuple[int, ...], top: int, bottom: int,
            left: int, right: int) -> np.ndarray:
    """The pixels of a rectangle, uint8 [bottom - top, right - left, 3]; ValueError for damage."""
    handle = ctypes.c_void_p(turbo.tj3Init(_DECOMPRESS))
    try:
        _check(turbo, handle, turbo.tj3DecompressHeader(handle, data, len(data)))
        unit = _UNIT_WIDTH.get(turbo.tj3Get(handle, _SUBSAMPLING))
        if unit is None:
            raise ValueError("an uncommon chroma subsampling")
        x, y = max(left - _MARGIN, 0) // unit * unit, max(top - _MARGIN, 0)
        width, height = min(right + _MARGIN, shape[1]) - x, min(bottom + _MARGIN, shape[0]) - y
        _check(turbo, handle, turbo.tj3SetCroppingRegion(handle, _Region(x, y, width, height)))
        out = np.empty((height, width, 3), np.uint8)
        _check(turbo, handle,
               turbo.tj3Decompress8(handle, data, len(data), out.ctypes.data, 0, _RGB))
        return out[top - y:bottom - y, left - x:right - x]
    finally:
        turbo.tj3Destroy(handle)


def _check(turbo: ctypes.CDLL, handle: ctypes.c_void_p, status: int) -> None:
    if status:
        raise ValueError(turbo.tj3GetErrorStr(handle).decode(errors="replace"))


@cache
def _turbo() -> ctypes.CDLL | None:
    """The TurboJPEG library with partial decoding: that of the package `turbojpeg`, through the
    module linked to it, or the system's; None where there is none."""
    package = importlib.util.find_spec("turbojpeg")
    for name in (package and package.origin, "libturbojpeg.so.0", "libturbojpeg.0.dylib"):
        try:
            turbo = ctypes.CDLL(name) if name else None
            turbo.tj3SetCroppingRegion.argtypes = [ctypes.c_void_p, _Region]
        except (OSError, AttributeError):          # not there, not a library, or an older one
            continue
        turbo.tj3Init.restype, turbo.tj3GetErrorStr.restype = ctypes.c_void_p, ctypes.c_char_p
        turbo.tj3GetErrorStr.argtypes = turbo.tj3Destroy.argtypes = [ctypes.c_void_p]
        turbo.tj3DecompressHeader.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
        turbo.tj3Decompress8.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t,
                                         ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
        return turbo
    return None
