"""An array of a file that is not read yet."""
from collections.abc import Callable

import numpy as np


class FileError(ValueError):
    """A file is damaged, hostile or of another kind."""


class Entry:
    """`shape` and `dtype` of an array of a file; `np.asarray(entry)` reads it."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, read: Callable[[], np.ndarray]):
        self.shape, self.dtype, self._read = shape, dtype, read

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self._read(), dtype, copy=copy)

    def __repr__(self) -> str:
        return f"Entry({self.dtype}{list(self.shape)})"
